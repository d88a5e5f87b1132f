"""A network's weights as the CPU kernels take them, checked once when they are made.

Knows neither files nor the network; what a kernel does with a weight is not known here.
"""

from collections.abc import Sequence
from ctypes import Structure, addressof, c_float, c_int32, c_int64, c_void_p

import numpy as np

from kvcache import CacheError
from kvcache.native.structs import Array, Floats, checked


class WeightStruct(Structure):
    """affine.h"""

    _fields_ = (
        ("codes", c_void_p),
        ("scales", c_void_p),
        ("biases", c_void_p),
        ("rows", c_int64),
        ("columns", c_int64),
        ("bits", c_int32),
        ("group", c_int32),
    )


class LayerStruct(Structure):
    """layers.h"""

    _fields_ = (
        ("attention_norm", c_void_p),
        ("mlp_norm", c_void_p),
        ("attention_eps", c_float),
        ("mlp_eps", c_float),
        ("q", c_void_p),
        ("k", c_void_p),
        ("v", c_void_p),
        ("output", c_void_p),
        ("gate", c_void_p),
        ("up", c_void_p),
        ("down", c_void_p),
    )


class Weight:
    """A packed affine weight of MLX (group 32 or 64; 4, 5, 6 or 8 bits) for the kernels.

    codes: uint32 [rows, columns * bits / 32]; scales and biases: float16
    [rows, columns / group]. Holds the arrays, so that their memory stays.
    """

    def __init__(
        self, codes: Array, scales: Array, biases: Array, *, bits: int, group: int
    ) -> None:
        if bits not in (4, 5, 6, 8) or group not in (32, 64):
            raise CacheError(f"got {bits} bits in groups of {group}, expected 4, 5, 6, 8 in 32, 64")
        where = checked("codes", codes, np.uint32, (None, None))
        self.rows, self.columns = codes.shape[0], codes.shape[1] * 32 // bits
        if self.columns % group or self.columns * bits != codes.shape[1] * 32:
            raise CacheError(f"got codes {codes.shape}, expected rows of whole groups of {group}")
        groups = self.rows, self.columns // group
        self._arrays = codes, scales, biases
        self.struct = WeightStruct(
            where,
            checked("scales", scales, np.float16, groups),
            checked("biases", biases, np.float16, groups),
            self.rows,
            self.columns,
            bits,
            group,
        )


class Layer:
    """The weights of one layer for the kernels; they must fit each other.

    norms: of what attention and of what the feed-forward part takes, float32
    [hidden], each with its epsilon. Holds all of them, so that their memory stays.
    """

    def __init__(
        self,
        norms: Sequence[tuple[Floats, float]],
        attention: Sequence[Weight],
        feed_forward: Sequence[Weight],
    ) -> None:
        (q, k, v, output), (gate, up, down) = attention, feed_forward
        hidden, inner = output.rows, gate.rows
        wanted = {
            "q": (q, q.rows, hidden),
            "k": (k, k.rows, hidden),
            "v": (v, k.rows, hidden),
            "output": (output, hidden, q.rows),
            "gate": (gate, inner, hidden),
            "up": (up, inner, hidden),
            "down": (down, hidden, inner),
        }
        for name, (weight, rows, columns) in wanted.items():
            if (weight.rows, weight.columns) != (rows, columns):
                raise CacheError(
                    f"got {name} [{weight.rows}, {weight.columns}], expected [{rows}, {columns}]"
                )
        # What a call's shape must agree with.
        self.sizes = hidden, q.rows, k.rows
        self._held = norms, attention, feed_forward
        self.struct = LayerStruct(
            *(checked("norm", norm, np.float32, (hidden,)) for norm, _ in norms),
            *(epsilon for _, epsilon in norms),
            *(addressof(weight.struct) for weight in (*attention, *feed_forward)),
        )
