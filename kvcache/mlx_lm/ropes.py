"""How the layers of an mlx-lm model turn their keys by position, measured and proven on each.

A layer is run on one token at several positions (`probe`). Its keys there say by how much
each pair of dimensions turns a position, first roughly, from one position to the next, then
ever finer, from far ones. That is the layer's turn only if it also leads to the keys at
positions that it was not measured at, the model's context exceeded among them. Scales of
the keys and of attention do not matter; ropes that change with the length fail the proof,
and so do those of dimensions that no `Rotation` turns. Knows no kind of rope.

Costs, once for each model: ten passes of one token that are never computed, and four keys of each
layer, nine of the first of those that turn alike. No projection's weights are read.
"""

import warnings
import weakref
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt
from mlx_lm.models.pipeline import PipelineMixin

from kvcache.mlx_lm.model_shape import layout_of
from kvcache.mlx_lm.probe import Appended, Probe, name_of
from kvcache.turn import NO_ROPE, Rotation

# Rounding of keys to bfloat16 turns them by up to 0.01, so that what a step of 32 leaves open,
# whole turns, the step before has told. Much further, angles in float32 are no longer exact.
_LADDER = (0, 1, 2**5, 2**10, 2**15, 2**17)
_PROOF = (0, 7, 9001)
_FURTHEST = 2**18 + 5
# By what angle a rung may lie from where the one before let it be expected.
_EXPECTED = 1.0
# How far keys may lie from where a turn leads, in parts of their size, near and for each position.
_CLOSE, _CLOSE_BY = 0.05, 2.0**-21

Turns = list[Rotation | None]
Keys = dict[int, npt.NDArray[np.float32]]  # [Hkv, D] at each position

_known: dict[int, Turns] = {}


def rotation_of(model: nn.Module) -> Rotation | None:
    """What the rope of all layers does as a pure turn; None where it is not known, or not one."""
    first, *others = rotations_of(model)
    return first if all(other is first for other in others) else None


def rotations_of(model: nn.Module) -> Turns:
    """The same of each layer's own, of those whose cache ours replaces.

    None where it is not known, NO_ROPE where the layer does not turn keys at all. Layers that
    turn alike have one object. What was found of a model is kept as long as the model.
    """
    if id(model) not in _known:
        _known[id(model)] = _measured(model)
        weakref.finalize(model, _known.pop, id(model))
    return list(_known[id(model)])


def _measured(model: nn.Module) -> Turns:
    layout = layout_of(model)
    beyond = 2 * layout.shape.context + 5
    proof = (*_PROOF, beyond) if beyond <= _FURTHEST else _PROOF
    probe = Probe(model)
    passes = {position: probe.appended(position) for position in (*_LADDER, *proof)}
    found: list[Rotation] = []
    turns = [_turn_of(_keys(passes, index), proof, found) for index in layout.ours]
    if not found and not _is_split(model) and _places_tokens(passes):
        # Positions come with the tokens: no turn of keys makes up for them.
        turns = [None] * len(turns)
    unknown = sum(turn is None for turn in turns)
    if unknown:
        warnings.warn(
            f"{name_of(model)}: how {unknown} of {len(turns)} layers turn keys is not known; "
            "their sinks are met at their true distance",
            stacklevel=2,
        )
    return turns


def _keys(passes: dict[int, Appended], index: int) -> dict[int, mx.array]:
    """The keys of a layer at all positions, not computed; none where they hang on others."""
    recorders = {at: each.recorders[index] for at, each in passes.items()}
    return {
        at: recorder.tokens[0][0, :, 0].astype(mx.float32)
        for at, recorder in recorders.items()
        if recorder.isolated and recorder.tokens is not None
    }


def _is_split(model: nn.Module) -> bool:
    """Whether what enters the first layer comes from another rank, which is not asked."""
    parts = (module for module in model.modules() if isinstance(module, PipelineMixin))
    return any(part.pipeline_size > 1 for part in parts)


def _places_tokens(passes: dict[int, Appended]) -> bool:
    """Whether what enters the first layer depends on the position."""
    first, second = (passes[at].entered for at in _LADDER[:2])
    return first is not None and second is not None and not mx.array_equal(first, second).item()


def _turn_of(
    keys: dict[int, mx.array], proof: Sequence[int], found: list[Rotation]
) -> Rotation | None:
    """The turn of a layer, added to those `found`, of which it may be one."""
    if not keys:
        return None
    told = _computed(keys, proof)
    if all((each == told[0]).all() for each in told.values()):
        return NO_ROPE
    for turn in found:
        if _leads(turn, told):
            return turn
    rungs = _computed(keys, _LADDER)
    moving = np.nonzero([(each != rungs[0]).any(axis=0) for each in rungs.values()])[1]
    # Fewer pairs would leave a moving dimension out.
    for pairs in range(int(moving.max()) // 2 + 1, rungs[0].shape[1] // 2 + 1):
        for traditional in (False, True):
            fitted = _fitted(rungs, pairs, traditional)
            if fitted is not None and _leads(fitted, told):
                found.append(fitted)
                return fitted
    return None


def _computed(keys: dict[int, mx.array], positions: Sequence[int]) -> Keys:
    mx.eval([keys[at] for at in positions])
    return {at: np.array(keys[at]) for at in positions}


def _fitted(keys: Keys, pairs: int, traditional: bool) -> Rotation | None:
    """The turn of so many pairs that leads from rung to rung; None where none does."""
    start = _as_pairs(keys[0], pairs, traditional)
    speed = np.zeros(pairs)
    for rung in _LADDER[1:]:
        there = _as_pairs(keys[rung], pairs, traditional)
        expected = np.exp(1j * speed * rung)
        # Of all heads, which turn alike: the longer ones say it more exactly.
        left = np.angle((there * np.conj(start * expected)).sum(axis=0))
        if rung > 1 and np.abs(left).max() > _EXPECTED:
            return None
        speed += left / rung
    with np.errstate(divide="ignore"):
        return Rotation(periods=1 / speed, traditional=traditional)


def _leads(turn: Rotation, keys: Keys) -> bool:
    """Whether the turn leads from the keys at 0 to all others."""
    start = mx.array(keys[0])[None, :, None]
    if 2 * len(turn.periods) > start.shape[-1]:
        return False
    size = np.abs(keys[0]).max()

    def off(at: int) -> float:
        return float(np.abs(np.array(turn(start, [at]))[0, :, 0] - keys[at]).max())

    return all(off(at) <= (_CLOSE + at * _CLOSE_BY) * size for at in keys)


def _as_pairs(keys: npt.NDArray[np.float32], pairs: int, traditional: bool) -> Any:
    """The turning dimensions [Hkv, D] as complex numbers [Hkv, pairs]."""
    turning = keys[:, : 2 * pairs].astype(np.float64)
    if traditional:
        return turning[:, 0::2] + 1j * turning[:, 1::2]
    return turning[:, :pairs] + 1j * turning[:, pairs:]
