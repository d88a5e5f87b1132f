"""Tensors by GGUF name, handed to the network one by one.

Each is checked against the shape that the network expects and taken once; what
is left at the end is an error, as it is in llama.cpp.
"""

from collections.abc import Mapping

import mlx.core as mx
import mlx.nn as nn

from models.errors import GGUFError
from models.layers import Embedding, Linear, QuantizedLinear, make_linear
from models.repack import Dense, Quantized


class Weights:
    """The tensors of one file.

    dtype: the activations' dtype; wider or equally wide dense weights are cast to it.
    """

    def __init__(self, tensors: Mapping[str, Quantized | Dense], dtype: mx.Dtype) -> None:
        self.dtype = dtype
        self._tensors = dict(tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def linear(self, name: str, *, rows: int, columns: int) -> Linear | QuantizedLinear:
        """`name.weight` [rows, columns] and, where the file has one, `name.bias` [rows]."""
        weight = self._matrix(f"{name}.weight", (rows, columns))
        bias = self.vector(f"{name}.bias", rows) if f"{name}.bias" in self else None
        return make_linear(weight, bias)

    def embedding(self, name: str, *, columns: int) -> Embedding:
        """`name.weight` [vocabulary, columns]."""
        return Embedding(self._matrix(f"{name}.weight", (None, columns)), self.dtype)

    def norm(self, name: str, *, size: int, eps: float) -> nn.RMSNorm:
        """`name.weight` [size] as a root-mean-square norm."""
        norm = nn.RMSNorm(size, eps)
        norm.weight = self.vector(f"{name}.weight", size)
        return norm

    def vector(self, name: str, size: int, dtype: mx.Dtype | None = None) -> mx.array:
        """A dense [size] tensor, in the activations' dtype unless told otherwise."""
        weight = self._take(name, (1, size))
        if not isinstance(weight, Dense):
            raise GGUFError(f"tensor {name!r} is quantized, expected F32, F16 or BF16")
        return weight.array.reshape(size).astype(dtype or self.dtype)

    def expect_empty(self) -> None:
        """Raise GGUFError when a tensor was not taken."""
        if self._tensors:
            names = sorted(self._tensors)
            raise GGUFError(
                f"{len(names)} tensors are not part of a plain Llama network "
                f"(first: {names[0]!r}); mixtures of experts and other variants are not supported"
            )

    def _take(self, name: str, shape: tuple[int | None, int]) -> Quantized | Dense:
        if name not in self._tensors:
            raise GGUFError(f"tensor {name!r} is missing, expected shape {_show(shape)}")
        weight = self._tensors.pop(name)
        rows, columns = weight.shape
        if columns != shape[1] or shape[0] not in (None, rows):
            raise GGUFError(
                f"tensor {name!r} has shape [{rows}, {columns}], expected {_show(shape)}"
            )
        return weight

    def _matrix(self, name: str, shape: tuple[int | None, int]) -> Quantized | Dense:
        weight = self._take(name, shape)
        if isinstance(weight, Dense) and weight.array.dtype.size >= self.dtype.size:
            return Dense(array=weight.array.astype(self.dtype))
        return weight


def _show(shape: tuple[int | None, int]) -> str:
    return f"[{'any' if shape[0] is None else shape[0]}, {shape[1]}]"
