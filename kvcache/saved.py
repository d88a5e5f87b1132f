"""A two-tier cache as arrays and one string, as mlx-lm saves it, and back.

    (description, pinned keys, pinned values, hot keys, hot values, *cold parts)

The description is JSON: layout, plan, ledger, rotation. Unencoded tokens are
[B, Hkv, S, D], oldest first; each cold part is [blocks, B, Hkv, ...], keys before
values, named and shaped by `kvcache.codecs`. What is absent is None.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from kvcache.codecs.base import Encoded
from kvcache.cold_ring import ColdView
from kvcache.config import Backend, HotDtype
from kvcache.errors import CacheError
from kvcache.ledger import Ledger, TierSizes
from kvcache.plan import LayerPlan
from kvcache.rotation import Rotation
from kvcache.tiers import Tiers

LAYOUT = "ember two-tier 1"

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
    plan, ledger, rotation = saved.plan, saved.ledger, saved.rotation
    described = {
        "layout": LAYOUT,
        "plan": asdict(plan) | {"hot_dtype": plan.hot_dtype.value, "backend": None},
        "ledger": {name: getattr(ledger, name) for name in _LEDGER},
        "rotation": rotation
        and {"periods": rotation.periods.tolist(), "traditional": rotation.traditional},
        "shape": saved.shape,
    }
    unencoded: list[mx.array | None] = [None] * 4
    view = saved.tiers.view(ledger)
    for piece in view.pieces:
        at = 0 if piece.pinned else 2
        unencoded[at : at + 2] = piece.keys, piece.values
    return json.dumps(described), *unencoded, *_cold_parts(plan, view.cold)


def restore(state: State, make: Callable[[LayerPlan], Tiers[Any]], backend: Backend) -> Saved:
    """What `dump` took, in tiers that `make` makes for a backend.

    Raises CacheError for a state of something else.
    """
    try:
        described = json.loads(state[0])
        if described["layout"] != LAYOUT:
            raise CacheError(f"got a cache saved as {described['layout']!r}, expected {LAYOUT!r}")
        plan = _plan(described["plan"], backend)
        saved = Saved(
            plan=plan,
            ledger=Ledger(sizes=plan.sizes, **described["ledger"]),
            tiers=make(plan),
            rotation=_rotation(described["rotation"]),
            shape=described["shape"] and tuple(described["shape"]),
        )
    except (TypeError, KeyError, ValueError) as error:
        raise CacheError(f"this is not a saved two-tier cache: {error}") from error
    _fill(saved, *state[1:])
    return saved


def _fill(
    saved: Saved,
    pinned_keys: mx.array | None,
    pinned_values: mx.array | None,
    hot_keys: mx.array | None,
    hot_values: mx.array | None,
    *parts: mx.array | None,
) -> None:
    ledger, tiers = saved.ledger, saved.tiers
    if pinned_keys is not None and pinned_values is not None:
        tiers.write_pinned(0, tiers.run((pinned_keys, pinned_values)))
    if hot_keys is not None and hot_values is not None:
        tiers.write_hot(ledger.hot_number, tiers.run((hot_keys, hot_values)))
    present = [part for part in parts if part is not None]
    if present and saved.shape is not None:
        split = len(_names(saved.plan)[0])
        keys, values = (
            Encoded(parts=dict(zip(names, part, strict=True)), dim=saved.shape[2])
            for names, part in zip(
                _names(saved.plan), (present[:split], present[split:]), strict=True
            )
        )
        tiers.put_cold(ledger.first, keys, values)


def _plan(fields: dict[str, Any], backend: Backend) -> LayerPlan:
    return LayerPlan(
        **{
            **fields,
            "sizes": TierSizes(**fields["sizes"]),
            "hot_dtype": HotDtype(fields["hot_dtype"]),
            "backend": backend.resolve(),
        }
    )


def _rotation(fields: dict[str, Any] | None) -> Rotation | None:
    if fields is None:
        return None
    return Rotation(periods=np.array(fields["periods"]), traditional=fields["traditional"])


def _names(plan: LayerPlan) -> tuple[list[str], list[str]]:
    """Names of the parts of keys and of values, in the order they are saved in."""
    keys, values = (sorted(codec.shapes(1, 1)) for codec in (plan.key_codec, plan.value_codec))
    return keys, values


def _cold_parts(plan: LayerPlan, view: ColdView | None) -> Sequence[mx.array | None]:
    key_names, value_names = _names(plan)
    if view is None:
        return [None] * (len(key_names) + len(value_names))
    keys, values = zip(*view.runs, strict=True)
    return [mx.concatenate([run.parts[name] for run in keys]) for name in key_names] + [
        mx.concatenate([run.parts[name] for run in values]) for name in value_names
    ]
