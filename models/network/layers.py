"""Layers over weights as a GGUF file gives them: packed affine or unquantized.

The network is written in these and does not know how a weight is stored.
"""

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
        y = mx.quantized_matmul(
            x,
            self.weight,
            self.scales,
            self.biases,
            transpose=True,
            group_size=self.group_size,
            bits=self.weight_bits,
        )
        return y + self.bias if "bias" in self else y


class Linear(nn.Module):
    """y = x W^T + b with W kept as f16, bf16 or f32; computed in x's dtype."""

    def __init__(self, weight: mx.array, bias: mx.array | None = None) -> None:
        super().__init__()
        self.weight = weight
        if bias is not None:
            self.bias = bias

    def __call__(self, x: mx.array) -> mx.array:
        y = x @ self.weight.astype(x.dtype).T
        return y + self.bias if "bias" in self else y


Projection = Linear | QuantizedLinear


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
