"""Tensors by GGUF name, handed to the network one by one.

Their names and shapes were checked before they were read (`shapes`).
"""

from collections.abc import Mapping, Sequence

import mlx.core as mx
import mlx.nn as nn

from models.gguf.repack import Quantized, Unquantized
from models.network.layers import Embedding, Joined, Projection, make_linear


class Weights:
    """The tensors of one file.

    dtype: the activations' dtype; wider or equally wide unquantized weights are cast to it.
    """

    def __init__(self, tensors: Mapping[str, Quantized | Unquantized], dtype: mx.Dtype) -> None:
        self.dtype = dtype
        self._tensors = dict(tensors)
        self.nbytes = sum(tensor.nbytes for tensor in tensors.values())

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def linear(self, name: str) -> Projection:
        """`name.weight` [rows, columns] and, where the file has one, `name.bias` [rows]."""
        bias = self.vector(f"{name}.bias") if f"{name}.bias" in self else None
        return make_linear(self._matrix(f"{name}.weight"), bias)

    def joined(self, names: Sequence[str], *, join: bool) -> Joined:
        """Matrices over the same input (see `Joined`).

        What is joined is copied and then let go, so that, where nobody else holds it, no
        more than this is ever there twice.
        """
        made = Joined([self.linear(name) for name in names], join=join)
        if len(made.products) < len(names):
            for name in names:
                del self._tensors[f"{name}.weight"]
            mx.clear_cache()
        return made

    def embedding(self, name: str) -> Embedding:
        """`name.weight` [vocabulary, columns]."""
        return Embedding(self._matrix(f"{name}.weight"), self.dtype)

    def norm(self, name: str, *, eps: float) -> nn.RMSNorm:
        """`name.weight` as a root-mean-square norm."""
        weight = self.vector(f"{name}.weight")
        norm = nn.RMSNorm(weight.size, eps)
        norm.weight = weight
        return norm

    def vector(self, name: str, dtype: mx.Dtype | None = None) -> mx.array:
        """An unquantized [size] tensor, in the activations' dtype unless told otherwise."""
        weight = self._tensors[name]
        assert isinstance(weight, Unquantized)
        return weight.array.astype(dtype or self.dtype)

    def _matrix(self, name: str) -> Quantized | Unquantized:
        weight = self._tensors[name]
        if isinstance(weight, Unquantized) and weight.array.dtype.size >= self.dtype.size:
            return Unquantized(array=weight.array.astype(self.dtype))
        return weight
