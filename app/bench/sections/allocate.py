"""What each layer's keys and values lose in few bits, for `kvcache.allocation`; kept per model.

One layer at a time is encoded, the others are not, and how far the model's answers move is
measured on a text that no row of `quality` reads. Codecs that are not measured so are taken
to lose, in each layer, the share of a coarser one's loss that they lose in all together.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

from app import private
from app.bench.meter import Meter
from app.bench.sections.harness import Harness, Tiers
from kvcache import CachePlan, EmberError, codec
from kvcache.allocation import Losses, allocate
from kvcache.cache_folder import cache_folder
from kvcache.errors import reason

KEYS = ("hkivi5", "hkivi4", "hkivi3", "hkivi2")
VALUES = ("trellis4", "trellis3", "trellis2")
# What is measured layer by layer; finer ones lose a share of what the first of these does.
_KEYS = "hkivi3", "hkivi2"
_VALUES = "trellis3", "trellis2"
_F16 = "f16"
# Of the text, and its first positions that are not scored: the same for every table.
TOKENS, SKIP = 1024, 256


def readings(layers: int) -> int:
    """How often the text is read where nothing is kept, the exact reading included."""
    return 1 + layers * (len(_KEYS) + len(_VALUES)) + len(KEYS) + len(VALUES)


def codecs(harness: Harness, found: Losses, mean: float) -> tuple[str, ...]:
    """Those of each layer that lose least in `mean` bits per element."""
    plan = harness.plan(Tiers(keys=_F16, values=_F16))
    block, dim = plan.config.block, plan.shape.head_dim
    bits = {name: codec(name).bits_per_element(block, dim) for name in (*KEYS, *VALUES)}
    return allocate(found, bits, mean)


def kept(identity: str, harness: Harness) -> Path:
    """Where the losses of a model's file lie; apart where keys are rounded plainly."""
    name = identity if harness.metric is not None else f"{identity}-plain"
    return cache_folder() / "allocation" / f"{name}.json"


def losses(
    harness: Harness, ids: Sequence[int], path: Path, meter: Meter, seconds: float
) -> Losses:
    """Those kept at `path`, or measured and kept there. seconds: that a reading takes."""
    found = _read(path, harness.model.shape.layers)
    if found is None:
        found = _measured(harness, ids, lambda label: meter.step(label, seconds))
        _write(path, found)
    return found


def _measured(
    harness: Harness, ids: Sequence[int], step: Callable[[str], AbstractContextManager[None]]
) -> Losses:
    with step("allocate: the f16 reference"):
        exact = harness.exact(ids, skip=SKIP)
    every = range(harness.model.shape.layers)

    def loss(pair: str, layers: Sequence[int]) -> float:
        with step(f"allocate: {pair}, layers {layers[0]} to {layers[-1]}"):
            return float(harness.divergence(_plan(harness, pair, layers), exact).kl.mean())

    def role(names: Sequence[str], measured: Sequence[str], pair: str) -> dict[str, list[float]]:
        in_all = {name: loss(pair.format(name), every) for name in names}
        found = {name: [loss(pair.format(name), [at]) for at in every] for name in measured}
        finest = measured[0]
        for name in set(names) - set(measured):
            share = in_all[name] / in_all[finest]
            found[name] = [share * each for each in found[finest]]
        return {name: found[name] for name in names}

    return Losses(keys=role(KEYS, _KEYS, "{}/f16"), values=role(VALUES, _VALUES, "f16/{}"))


def _plan(harness: Harness, pair: str, layers: Sequence[int]) -> CachePlan:
    """These codecs in these layers, none in others."""
    count = harness.model.shape.layers
    by_layer = tuple(pair if at in layers else f"{_F16}/{_F16}" for at in range(count))
    return harness.plan(Tiers(keys=_F16, values=_F16, by_layer=by_layer))


def _read(path: Path, layers: int) -> Losses | None:
    """None where there are none, or what is no table of such a model."""
    try:
        found = Losses(**json.loads(path.read_text(encoding="utf-8")))
        names = tuple(found.keys), tuple(found.values)
        sizes = {len(each) for role in (found.keys, found.values) for each in role.values()}
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return found if names == (KEYS, VALUES) and sizes == {layers} else None


def _write(path: Path, found: Losses) -> None:
    """Whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        private.write(path, json.dumps(asdict(found), indent=1) + "\n")
    except OSError as error:
        raise EmberError(f"cannot keep the table of losses in {path}: {reason(error)}") from error
