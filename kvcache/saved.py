"""A two-tier cache as arrays and one string, as mlx-lm saves it, and back.

    (description, sum, pinned keys, pinned values, hot keys, hot values, *cold parts)

The description is JSON: layout, plan, ledger, rotation. The sum is over all the
rest (`integrity.checksum`). Unencoded tokens are
[B, Hkv, S, D], oldest first; each cold part is [blocks, B, Hkv, ...], keys before
values, named and shaped by `kvcache.codecs`. What is absent is None. Layout 1, which
is read too, has no sum, and its blocks begin at the first token that is not pinned.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np

from kvcache.codecs.base import ArraySpec, Encoded
from kvcache.config import Backend, HotDtype
from kvcache.errors import CacheError, quoted
from kvcache.integrity import (
    MOST,
    bad_field,
    check_array,
    check_memory,
    check_sum,
    checksum,
    count,
    field,
)
from kvcache.snapshot import Snapshot, joined
from kvcache.tiers.ledger import Ledger, TierSizes
from kvcache.tiers.memory import Tiers
from kvcache.tiers.plan import LayerPlan
from kvcache.turn import Rotation

LAYOUT = "ember two-tier 2"
_WITHOUT_SUM = "ember two-tier 1"

_LEDGER = ("total", "first", "end", "origin")

State = tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What a cache is made of. shape: [B, Hkv, D], None before the first token."""

    plan: LayerPlan
    ledger: Ledger
    tiers: Tiers[Any]
    rotation: Rotation | None
    shape: tuple[int, int, int] | None


def dump(saved: Saved) -> State:
    """The state of a cache."""
    ledger = saved.ledger
    described = {
        "layout": LAYOUT,
        "plan": _plan_fields(saved.plan),
        "ledger": {name: getattr(ledger, name) for name in _LEDGER},
        "rotation": _rotation_fields(saved.rotation),
        "shape": saved.shape,
    }
    held = saved.tiers.snapshot(ledger)
    text, arrays = json.dumps(described), [*_unencoded(held), *_cold_parts(held)]
    return text, checksum(text, arrays), *arrays


def policy(plan: LayerPlan, rotation: Rotation | None) -> str:
    """All that two caches must share for one to hold what the other held, as JSON."""
    fields = _plan_fields(plan)
    del fields["check_finite"]  # which no token depends on
    return json.dumps([fields, _rotation_fields(rotation)])


def unencoded_tokens(tiers: Tiers[Any], ledger: Ledger) -> list[mx.array | None]:
    """Of a state: pinned keys and values, then hot ones."""
    # Without cold blocks, which a snapshot may copy.
    return _unencoded(tiers.snapshot(replace(ledger, first=ledger.end)))


def cold_parts(tiers: Tiers[Any], ledger: Ledger, first: int, end: int) -> list[mx.array]:
    """Of a state: the parts of keys, then of values, of the cold blocks [first, end)."""
    total = ledger.start + end * ledger.sizes.block
    held = tiers.snapshot(replace(ledger, total=total, first=first, end=end))
    return [part for part in _cold_parts(held) if part is not None]


def fill(tiers: Tiers[Any], ledger: Ledger, unencoded: Sequence[mx.array | None]) -> None:
    """Write the unencoded tokens of a state. Raises CacheError for what is not finite."""
    pinned_keys, pinned_values, hot_keys, hot_values = unencoded
    if pinned_keys is not None and pinned_values is not None:
        tiers.write_pinned(0, tiers.prepare(pinned_keys, pinned_values))
    if hot_keys is not None and hot_values is not None:
        tiers.write_hot(ledger.hot_number, tiers.prepare(hot_keys, hot_values))


def put_parts(
    tiers: Tiers[Any], plan: LayerPlan, number: int, parts: Sequence[mx.array], dim: int
) -> None:
    """Put cold blocks of head dimension D = `dim` from a block number; parts as of a state."""
    names, split = _names(plan), len(_names(plan)[0])
    keys, values = (
        Encoded(parts=dict(zip(each, some, strict=True)), dim=dim)
        for each, some in zip(names, (parts[:split], parts[split:]), strict=True)
    )
    tiers.put_cold(number, keys, values)


def restore(state: State, make: Callable[[LayerPlan], Tiers[Any]], backend: Backend) -> Saved:
    """What `dump` took, in tiers that `make` makes for a backend.

    Raises CacheError for a state of something else, or a damaged one, before any
    memory is made for it.
    """
    description, arrays = _whole(state)
    plan = _plan(_fields(description, "plan"), backend)
    shape, ledger = description.get("shape"), {"origin": 0, **_fields(description, "ledger")}
    saved = Saved(
        plan=plan,
        ledger=Ledger(
            sizes=plan.sizes,
            total=count(ledger, "total"),
            first=count(ledger, "first"),
            end=count(ledger, "end"),
            origin=count(ledger, "origin"),
        ),
        tiers=make(plan),
        rotation=_rotation(description.get("rotation")),
        shape=None if shape is None else _shape(shape),
    )
    saved.ledger.check()
    _check_arrays(saved, arrays)
    _fill(saved, arrays)
    return saved


def _whole(state: State) -> tuple[Mapping[str, Any], Sequence[mx.array | None]]:
    """The description and the arrays of a state that is as it was saved."""
    if not isinstance(state, Sequence) or len(state) < 2 or not isinstance(state[0], str):
        raise CacheError("this is not a saved two-tier cache: it has no description")
    text, *arrays = state
    try:
        description = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CacheError(f"this is not a saved two-tier cache: {error}") from error
    layout = description.get("layout") if isinstance(description, dict) else None
    if layout not in (LAYOUT, _WITHOUT_SUM):
        raise CacheError(f"got a cache saved as {quoted(layout)}, expected {LAYOUT!r}")
    if not all(array is None or isinstance(array, mx.array) for array in arrays):
        raise CacheError("this is not a saved two-tier cache: it holds what is no array")
    if layout == LAYOUT:
        check_sum(arrays.pop(0), text, arrays)
    return description, arrays


def _check_arrays(saved: Saved, arrays: Sequence[mx.array | None]) -> None:
    """Raise CacheError unless there is all that the ledger tells of, and nothing else."""
    plan, ledger = saved.plan, saved.ledger
    key_names, value_names = _names(plan)
    if len(arrays) != 4 + len(key_names) + len(value_names) or (ledger.held and not saved.shape):
        raise CacheError(f"this is not a saved two-tier cache: got {len(arrays)} arrays")
    batch, heads, dim = saved.shape or (1, 1, 1)
    dtype = plan.hot_dtype.mx
    tokens = ("pinned", ledger.pinned, arrays[:2]), ("hot", ledger.hot, arrays[2:4])
    for tier, held, pair in tokens:
        for array in pair:
            wanted = (batch, heads, held, dim) if held else None
            check_array(f"{tier} tokens", array, wanted, dtype)
    if saved.shape is None:
        return
    if saved.rotation is not None and 2 * len(saved.rotation.periods) > dim:
        raise bad_field("periods", len(saved.rotation.periods), f"at most {dim // 2}")
    check_memory(
        plan.token_bytes(saved.shape) * (plan.sizes.pinned + plan.sizes.hot_memory)
        + plan.block_bytes(saved.shape) * plan.sizes.cold_memory
    )
    specs = [codec.shapes(plan.sizes.block, dim) for codec in plan.codecs]
    parts = iter(arrays[4:])
    for names, spec in zip((key_names, value_names), specs, strict=True):
        for name in names:
            blocks = (ledger.end - ledger.first, batch, heads, *spec[name].shape)
            check_array(name, next(parts), blocks if ledger.cold else None, spec[name].dtype)


def _fill(saved: Saved, arrays: Sequence[mx.array | None]) -> None:
    fill(saved.tiers, saved.ledger, arrays[:4])
    present = [part for part in arrays[4:] if part is not None]
    if present and saved.shape is not None:
        put_parts(saved.tiers, saved.plan, saved.ledger.first, present, saved.shape[2])


def _plan_fields(plan: LayerPlan) -> dict[str, Any]:
    sizes = asdict(plan.sizes)
    # As the layout was before there were any.
    if plan.sizes.window is None:
        del sizes["window"]
    if not plan.sizes.slack:
        del sizes["slack"]
    other = {"sizes": sizes, "hot_dtype": plan.hot_dtype.value, "backend": None}
    return asdict(plan) | other


def _rotation_fields(rotation: Rotation | None) -> dict[str, Any] | None:
    if rotation is None:
        return None
    return {"periods": rotation.periods.tolist(), "traditional": rotation.traditional}


def _plan(fields: Mapping[str, Any], backend: Backend) -> LayerPlan:
    sizes, dtype = _fields(fields, "sizes"), field(fields, "hot_dtype", str)
    if dtype not in {known.value for known in HotDtype}:
        raise bad_field("hot_dtype", dtype, ", ".join(known.value for known in HotDtype))
    temperature: Any = fields.get("temperature")
    if type(temperature) not in (int, float) or not 0 < temperature < 1e30:
        raise bad_field("temperature", temperature, "more than 0")
    plan = LayerPlan(
        layer=count(fields, "layer"),
        sizes=TierSizes(
            pinned=count(sizes, "pinned"),
            hot=count(sizes, "hot"),
            block=count(sizes, "block", least=1),
            slots=count(sizes, "slots"),
            window=None if "window" not in sizes else count(sizes, "window", least=1),
            slack=0 if "slack" not in sizes else count(sizes, "slack"),
        ),
        keys=field(fields, "keys", str),
        values=field(fields, "values", str),
        hot_dtype=HotDtype(dtype),
        backend=backend.resolve(),
        turn_sinks=field(fields, "turn_sinks", bool),
        temperature=temperature,
        check_finite=field(fields, "check_finite", bool),
    )
    if plan.sizes.max_tokens > MOST:
        raise bad_field("sizes", plan.sizes.max_tokens, f"at most {MOST} tokens")
    # Unknown codecs raise here.
    _names(plan)
    return plan


def _fields(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = field(fields, name, dict)
    return found


def _shape(shape: object) -> tuple[int, int, int]:
    sizes = dict(enumerate(shape)) if isinstance(shape, list) else {}
    if len(sizes) != 3:
        raise bad_field("shape", shape, "B, Hkv and D")
    named = {name: sizes[at] for at, name in enumerate(("B", "Hkv", "D"))}
    batch, heads, dim = (count(named, name, least=1) for name in named)
    return batch, heads, dim


def _rotation(fields: object) -> Rotation | None:
    if fields is None:
        return None
    if not isinstance(fields, dict):
        raise bad_field("rotation", fields, "periods")
    periods = field(fields, "periods", list)
    # A period may be infinite: such a pair does not turn.
    if not all(type(period) is float and abs(period) > 0 for period in periods):
        raise bad_field("periods", periods, "numbers other than 0")
    traditional = field(fields, "traditional", bool)
    return Rotation(periods=np.array(periods, np.float64), traditional=traditional)


def part_specs(plan: LayerPlan, dim: int) -> list[tuple[str, ArraySpec]]:
    """A name for each part of blocks of head dimension D = `dim`, and what follows Hkv in it."""
    return [
        (f"{role}.{name}", specs[name])
        for role, codec in zip(("keys", "values"), plan.codecs, strict=True)
        for specs in [codec.shapes(plan.sizes.block, dim)]
        for name in sorted(specs)
    ]


def _names(plan: LayerPlan) -> tuple[list[str], list[str]]:
    """Names of the parts of keys and of values, in the order they are saved in."""
    keys, values = (sorted(codec.shapes(1, 1)) for codec in plan.codecs)
    return keys, values


def _unencoded(held: Snapshot) -> list[mx.array | None]:
    """Pinned keys and values, then hot ones, [B, Hkv, S, D]; None where there are none."""
    found: list[mx.array | None] = [None] * 4
    pieces = held.unencoded()
    for at, pinned in ((0, True), (2, False)):
        if tier := [tokens for p, tokens in pieces if (p < held.bounds.cold_position) == pinned]:
            found[at : at + 2] = joined(tier)
    return found


def _cold_parts(held: Snapshot) -> Sequence[mx.array | None]:
    """The parts of keys, then of values, each [blocks, B, Hkv, ...] in the order of blocks."""
    found = [(keys, values) for _, keys, values in held.encoded()]
    return [
        mx.concatenate([run[role].parts[name] for run in found]) if found else None
        for role, codec in enumerate(held.cold.codecs)
        for name in sorted(codec.shapes(1, 1))
    ]
