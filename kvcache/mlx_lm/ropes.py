"""What the ropes of an mlx-lm model's layers do, as pure turns."""

import mlx.nn as nn
import numpy as np
import numpy.typing as npt
from mlx_lm.models import cohere2, rope_utils

from kvcache.given import instance
from kvcache.turn import NO_ROPE, Rotation


def rotation_of(model: nn.Module) -> Rotation | None:
    """What the rope of all layers does as a pure turn; None where it is not known, or not one."""
    first, *others = rotations_of(model)
    alike = first is not None and all(one and one.key == first.key for one in others)
    return first if alike else None


def rotations_of(model: nn.Module) -> list[Rotation | None]:
    """The same of each layer's own: None where it is not known, NO_ROPE where it has none."""
    instance("model", model, nn.Module)
    found = [[m for m in layer.modules() if _is_rope(m)] for layer in model.layers]
    # A model without any knows positions in another way, or not from its modules.
    absent = NO_ROPE if any(found) else None
    turns = [
        _one_of(ropes) if ropes and _is_applied(layer) else absent
        for layer, ropes in zip(model.layers, found, strict=True)
    ]
    # One object for layers that turn alike, so that what follows of it is worked out once.
    by_key = {turn.key: turn for turn in turns if turn is not None}
    return [turn and by_key[turn.key] for turn in turns]


def _one_of(ropes: list[nn.Module]) -> Rotation | None:
    """The turn of a layer's ropes; None where they differ or are not known."""
    first, *others = map(_rotation, ropes)
    alike = first is not None and all(one and one.key == first.key for one in others)
    return first if alike else None


def _is_applied(layer: nn.Module) -> bool:
    """Whether a layer uses its rope: Cohere's layers that see all tokens leave theirs aside."""
    attention = layer.get("self_attn")
    return not isinstance(attention, cohere2.Attention) or attention.use_sliding_window


def _is_rope(module: nn.Module) -> bool:
    return isinstance(module, nn.RoPE) or type(module).__module__ == rope_utils.__name__


def _rotation(rope: nn.Module) -> Rotation | None:
    """The turn of one of the ropes that mlx-lm makes; scales are not part of it."""
    if type(rope) is nn.RoPE:
        base_periods = rope.base ** (np.arange(0, rope.dims, 2) / rope.dims)
        return Rotation(periods=base_periods / rope.scale, traditional=rope.traditional)
    if isinstance(rope, rope_utils.SuScaledRoPE):
        return Rotation(periods=_periods(rope), traditional=False)
    if isinstance(rope, rope_utils.Llama3RoPE | rope_utils.YarnRoPE):
        return Rotation(periods=_periods(rope), traditional=rope.traditional)
    return None


def _periods(rope: nn.Module) -> npt.NDArray[np.float64]:
    return np.asarray(rope._freqs).astype(np.float64)
