"""What the network asks of a matrix, and a matrix in plain MLX.

The network is written in these and does not know how a weight is held. Items, self["x"],
not attributes, where a token passes: MLX looks those up eight times as slowly.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from models.gguf.decode import decode_into
from models.gguf.tensor import Tensor


class Projection(Protocol):
    """A matrix W [rows, columns] of a backend, and a bias [rows], if any; a module of MLX's."""

    @property
    def rows(self) -> int:
        """Numbers that a product has."""

    def __call__(self, x: mx.array) -> mx.array:
        """y = x W^T + b: x [..., columns] -> [..., rows] in x's dtype."""

    def look_up(self, ids: mx.array, scale: float) -> mx.array:
        """W's rows `ids` [...] times `scale`, as activations [..., columns].

        On a GPU an id of no row is taken for the nearest that there is: it may be on its way
        still, so that nobody can look at it before.
        """


HoldMatrix = Callable[[Sequence[Tensor], mx.array | None, mx.Dtype], Projection]
"""Makes one matrix of the rows of tensors, which are of one type, one behind the other; with a
bias, or None, for activations of a dtype. Each backend has one."""


class Linear(nn.Module):
    """y = x W^T + b with W as MLX's own numbers, in x's dtype."""

    def __init__(self, weight: mx.array, bias: mx.array | None = None) -> None:
        super().__init__()
        self.weight = weight
        if bias is not None:
            self.bias = bias

    def __call__(self, x: mx.array) -> mx.array:
        y: mx.array = x @ self["weight"].T
        return y + self["bias"] if "bias" in self else y

    @property
    def rows(self) -> int:
        return len(self.weight)

    def look_up(self, ids: mx.array, scale: float) -> mx.array:
        found: mx.array = self["weight"][mx.clip(ids, 0, self.rows - 1)]
        return found if scale == 1 else found * scale


def hold_decoded(
    tensors: Sequence[Tensor], bias: mx.array | None, dtype: mx.Dtype = mx.float32
) -> Linear:
    """Weights as gguf-py decodes them, in a float of `dtype`; see `decode` for errors."""
    counts = [tensor.rows for tensor in tensors]
    weight = mx.zeros((sum(counts), tensors[0].columns), dtype)
    mx.eval(weight)
    memory = np.asarray(weight)  # its own, to write to
    for tensor, count, end in zip(tensors, counts, accumulate(counts), strict=True):
        decode_into(tensor, memory[end - count : end])
    return Linear(weight, bias)
