"""Layers over weights as a GGUF file gives them: packed affine or unquantized.

The network is written in these and does not know how a weight is stored. Items, self["x"],
not attributes, where a token passes: MLX looks those up eight times as slowly.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate, groupby

import mlx.core as mx
import mlx.nn as nn

from models.gguf.repack import Quantized, Unquantized


class QuantizedLinear(nn.Module):
    """y = x W^T + b with W packed affine: x [..., in] -> [..., out] in x's dtype."""

    def __init__(self, weight: Quantized, bias: mx.array | None = None) -> None:
        super().__init__()
        self.weight = weight.weight
        self.scales = weight.scales
        self.biases = weight.biases
        self.group_size = weight.group_size
        # Not `bits`: mlx-lm reads that name on caches, and a layer's is its own affair.
        self.weight_bits = weight.bits
        if bias is not None:
            self.bias = bias

    def __call__(self, x: mx.array) -> mx.array:
        y: mx.array = mx.quantized_matmul(
            x,
            self["weight"],
            self["scales"],
            self["biases"],
            transpose=True,
            group_size=self.group_size,
            bits=self.weight_bits,
        )
        return y + self["bias"] if "bias" in self else y


class Linear(nn.Module):
    """y = x W^T + b with W kept as f16, bf16 or f32; computed in x's dtype."""

    def __init__(self, weight: mx.array, bias: mx.array | None = None) -> None:
        super().__init__()
        self.weight = weight
        if bias is not None:
            self.bias = bias

    def __call__(self, x: mx.array) -> mx.array:
        y: mx.array = x @ self["weight"].astype(x.dtype).T
        return y + self["bias"] if "bias" in self else y


Projection = Linear | QuantizedLinear


class Joined(nn.Module):
    """Matrices over the same input, in as few products as the ways they are stored allow.

    join: whether those next to each other that are stored alike become one, in arrays of
    their own; else each is a product.
    """

    def __init__(self, matrices: Sequence[Projection], *, join: bool) -> None:
        super().__init__()
        runs = [list(run) for _, run in groupby(matrices, _stored_as)]
        if not join:
            runs = [[matrix] for matrix in matrices]
        self.products = [_joined(run) if len(run) > 1 else run[0] for run in runs]
        self._rows = [[len(matrix.weight) for matrix in run] for run in runs]

    def __call__(self, x: mx.array) -> list[mx.array]:
        """x [..., in] -> [..., rows of all its matrices] of each product."""
        return [product(x) for product in self["products"]]

    def matrices(self) -> list[Projection]:
        """Each matrix by itself, as a view."""
        return [
            _some_rows(product, end - count, end)
            for product, rows in zip(self.products, self._rows, strict=True)
            for count, end in zip(rows, accumulate(rows), strict=True)
        ]


class Embedding(nn.Module):
    """Token ids [...] -> vectors [..., hidden] in `dtype`, and back to logits when tied."""

    def __init__(self, weight: Quantized | Unquantized, dtype: mx.Dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.as_linear = make_linear(weight)

    def __call__(self, ids: mx.array) -> mx.array:
        table = self.as_linear
        if isinstance(table, Linear):
            return table.weight[ids].astype(self.dtype)
        # Scales go to the activations' dtype first: a product rounded to f16 would be a
        # second quantization.
        return mx.dequantize(
            table.weight[ids],
            table.scales[ids].astype(self.dtype),
            table.biases[ids].astype(self.dtype),
            group_size=table.group_size,
            bits=table.weight_bits,
        )


def make_linear(weight: Quantized | Unquantized, bias: mx.array | None = None) -> Projection:
    """The layer for a weight as it is stored."""
    if isinstance(weight, Quantized):
        return QuantizedLinear(weight, bias)
    return Linear(weight.array, bias)


def _joined(matrices: Sequence[Projection]) -> Projection:
    """One matrix of the rows of several that are stored alike, in arrays of its own."""
    arrays = {
        name: mx.concatenate([matrix[name] for matrix in matrices])
        for name, array in matrices[0].items()
        if isinstance(array, mx.array)
    }
    mx.eval(arrays)
    return _of_arrays(matrices[0], arrays)


def _some_rows(matrix: Projection, start: int, stop: int) -> Projection:
    arrays = {
        name: array[start:stop] for name, array in matrix.items() if isinstance(array, mx.array)
    }
    return _of_arrays(matrix, arrays)


def _of_arrays(like: Projection, arrays: Mapping[str, mx.array]) -> Projection:
    weight, bias = arrays["weight"], arrays.get("bias")
    if not isinstance(like, QuantizedLinear):
        return Linear(weight, bias)
    bits, group = like.weight_bits, like.group_size
    scales, biases = arrays["scales"], arrays["biases"]
    return QuantizedLinear(
        Quantized(weight=weight, scales=scales, biases=biases, bits=bits, group_size=group), bias
    )


def _stored_as(matrix: Projection) -> tuple[object, ...]:
    """What a product must know of it beside its rows."""
    packed = (matrix.weight_bits, matrix.group_size) if isinstance(matrix, QuantizedLinear) else ()
    return (*packed, "bias" in matrix, matrix.weight.dtype)
