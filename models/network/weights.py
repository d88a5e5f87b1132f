"""Tensors by GGUF name, handed to the network one by one, as its backend holds them.

Their names and shapes were checked before they were read (`shapes`).
"""

from collections.abc import Mapping, Sequence
from itertools import groupby

import mlx.core as mx
import mlx.nn as nn

from models.gguf.decode import decode
from models.gguf.tensor import Tensor
from models.network.layers import HoldMatrix, Projection, hold_decoded
from models.network.ranks import Ranks, RowNorm
from models.network.share import Split


class Weights:
    """The tensors of one file.

    dtype: the activations' dtype, which vectors are cast to. hold: what makes a matrix.
    joins: whether matrices over the same input become one, which needs fewer launches.
    ranks: who else holds parts of them; `tensors` are this rank's.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        dtype: mx.Dtype,
        hold: HoldMatrix = hold_decoded,
        *,
        joins: bool = True,
        ranks: Ranks | None = None,
    ) -> None:
        self.dtype, self._ranks = dtype, ranks
        self._tensors, self._hold, self._joins = tensors, hold, joins

    @property
    def are_shared(self) -> bool:
        """Whether other ranks hold the rest of them."""
        return self._ranks is not None

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def linear(self, *names: str) -> Projection:
        """`name.weight` [rows, columns] and, where the file has one, `name.bias` [rows].

        Of several names: matrices of one type over the same input, all with a bias or none,
        as one matrix of all their rows.
        """
        tensors = [self._tensors[f"{name}.weight"] for name in names]
        biases = [self.vector(f"{name}.bias") for name in names if f"{name}.bias" in self]
        bias = mx.concatenate(biases) if len(biases) > 1 else next(iter(biases), None)
        if self._ranks is None:
            return self._hold(tensors, bias, self.dtype)
        return self._ranks.matrix(f"{names[0]}.weight", tensors, bias, self._hold, self.dtype)

    def joined(self, names: Sequence[str]) -> list[Projection]:
        """Matrices over the same input, in order; those that are joined have one type."""
        return [self.linear(*run) for _, run in groupby(names, self._alike)]

    def norm(self, name: str, *, eps: float) -> nn.RMSNorm:
        """`name.weight` as a root-mean-square norm."""
        weight = self.vector(f"{name}.weight")
        if self._ranks is not None and self._ranks.share.split(f"{name}.weight") is Split.HEADS:
            return RowNorm(weight, eps, self._ranks.group)
        norm = nn.RMSNorm(weight.size, eps)
        norm.weight = weight
        return norm

    def vector(self, name: str, dtype: mx.Dtype | None = None) -> mx.array:
        """An unquantized [size] tensor, in the activations' dtype unless told otherwise."""
        return mx.array(decode(self._tensors[name])).astype(dtype or self.dtype)

    def _alike(self, name: str) -> tuple[object, ...]:
        """What matrices that become one have in common."""
        if not self._joins:
            return (name,)
        return self._tensors[f"{name}.weight"].type, f"{name}.bias" in self
