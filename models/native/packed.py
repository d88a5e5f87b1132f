"""A network's weights as the CPU kernels take them, checked once when they are made.

Each class mirrors a struct of the headers and holds what it points to, so that its
memory stays. Knows neither files, but for the types of their tensors, nor the
network's definition.
"""

from collections.abc import Sequence
from ctypes import Structure, addressof, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from kvcache import CacheError
from kvcache.native.structs import Bytes, Floats, address, checked
from models.gguf.grids import grid_of
from models.gguf.tensor_types import TensorType


class WeightStruct(Structure):
    """blocks.h"""

    _fields_ = (
        ("data", c_void_p),
        ("added", c_void_p),
        ("grid", c_void_p),
        ("rows", c_int64),
        ("columns", c_int64),
        ("row_bytes", c_int64),
        ("type", c_int32),
    )


class NormStruct(Structure):
    """steps.h"""

    _fields_ = (("weight", c_void_p), ("columns", c_int64), ("eps", c_float))


class RopeStruct(Structure):
    """steps.h"""

    _fields_ = (
        ("periods", c_void_p),
        ("pairs", c_int64),
        ("apart", c_int32),
    )


class InputsStruct(Structure):
    """steps.h"""

    _fields_ = (
        ("q", c_void_p),
        ("k", c_void_p),
        ("v", c_void_p),
        ("norm", NormStruct),
        ("query_norm", NormStruct),
        ("key_norm", NormStruct),
        ("rope", RopeStruct),
        ("dim", c_int64),
        ("query_factors", c_void_p),
        ("temperature_scale", c_float),
        ("temperature_span", c_int64),
    )


class AdditionStruct(Structure):
    """steps.h"""

    _fields_ = (("weight", c_void_p), ("norm", NormStruct), ("scale", c_float))


class FeedForwardStruct(Structure):
    """steps.h"""

    _fields_ = (
        ("gate", c_void_p),
        ("up", c_void_p),
        ("norm", NormStruct),
        ("gelu", c_int32),
        ("down", AdditionStruct),
    )


class LayerStruct(Structure):
    """layers.h"""

    _fields_ = (
        ("inputs", InputsStruct),
        ("output", AdditionStruct),
        ("feed_forward", FeedForwardStruct),
    )


class Weight:
    """A matrix [rows, columns] as it lies in a GGUF file.

    data: uint8 [rows, row bytes], whole blocks of `kind`, which stay where they are. added:
    float32 [rows], to each row's products. kinds: what its products are computed by.
    """

    def __init__(self, data: Bytes, *, kind: TensorType, added: Floats | None = None) -> None:
        where = checked("data", data, np.uint8, (None, None))
        rows, row_bytes = data.shape
        if row_bytes % kind.block_bytes:
            raise CacheError(
                f"got rows of {row_bytes} bytes, expected blocks of {kind.block_bytes} "
                f"({kind.name})"
            )
        self.rows, self.columns = rows, row_bytes // kind.block_bytes * kind.block_size
        grid = _grid(kind)
        self.data, self._arrays = data, (added, grid)
        self.kinds = frozenset([kind])
        self.struct = WeightStruct(
            where,
            _optional("added", added, rows),
            None if grid is None else address(grid),
            rows,
            self.columns,
            row_bytes,
            kind,
        )


@dataclass(frozen=True, kw_only=True)
class Norm:
    """A root-mean-square norm: weight float32 [numbers], which are normed together."""

    weight: Floats
    eps: float


@dataclass(frozen=True, kw_only=True)
class Rope:
    """How heads turn: pair i by position / periods[i]; periods float64 [pairs].

    apart: pairs are (i, i + pairs), else (2i, 2i + 1).
    """

    periods: npt.NDArray[np.float64]
    apart: bool = False


@dataclass(frozen=True, kw_only=True)
class Temperature:
    """Queries at position p are multiplied by 1 + scale * log(1 + p // span)."""

    scale: float
    span: int


class Inputs:
    """What attention takes of x [..., hidden]: heads of `dim` numbers.

    weights: of queries, keys and values. norm: of x. query_norm, key_norm: of queries
    and of keys, before they turn, each over a head or over all of them. query_factors:
    float32 [dim], of each query, alike in a pair that turns.
    """

    def __init__(
        self,
        weights: Sequence[Weight],
        *,
        dim: int,
        norm: Norm | None = None,
        query_norm: Norm | None = None,
        key_norm: Norm | None = None,
        rope: Rope | None = None,
        query_factors: Floats | None = None,
        temperature: Temperature | None = None,
    ) -> None:
        q, k, v = weights
        _check_heads(weights, dim)
        if rope is not None and 2 * len(rope.periods) > dim:
            raise CacheError(f"got {len(rope.periods)} periods, heads of {dim}")
        if temperature is not None and temperature.span < 1:
            raise CacheError(f"got a span of {temperature.span} positions, expected at least 1")
        self.weights, self.dim, self.hidden = weights, dim, q.columns
        self.kinds = q.kinds | k.kinds | v.kinds
        self._held = norm, query_norm, key_norm, rope, query_factors
        self.struct = InputsStruct(
            *(addressof(weight.struct) for weight in (q, k, v)),
            _norm(norm, q.columns),
            _norm(query_norm, dim, q.rows),
            _norm(key_norm, dim, k.rows),
            RopeStruct() if rope is None else _rope(rope),
            dim,
            _optional("query factors", query_factors, dim),
            0.0 if temperature is None else temperature.scale,
            1 if temperature is None else temperature.span,
        )


class RowNorm:
    """A norm of whole rows, by itself."""

    def __init__(self, norm: Norm) -> None:
        self.columns = norm.weight.size
        self._held = norm
        self.struct = _norm(norm, self.columns)


class Addition:
    """A product that is normed, multiplied by `scale` and added to x."""

    def __init__(self, weight: Weight, *, norm: Norm | None = None, scale: float = 1.0) -> None:
        self.rows, self.columns, self.kinds = weight.rows, weight.columns, weight.kinds
        self._held = weight, norm
        self.struct = AdditionStruct(addressof(weight.struct), _norm(norm, weight.rows), scale)


class FeedForward:
    """The product `down` of act(gate(n)) * up(n) with n = norm(x): act is GELU or SiLU."""

    def __init__(
        self,
        gate: Weight,
        up: Weight,
        down: Addition,
        *,
        norm: Norm | None = None,
        gelu: bool = False,
    ) -> None:
        self.hidden = down.rows
        shape = down.columns, down.rows
        if any((weight.rows, weight.columns) != shape for weight in (gate, up)):
            raise CacheError(f"got a gate or an up that is not {list(shape)}, as down is")
        self._held = gate, up, down, norm
        self.kinds = gate.kinds | up.kinds | down.kinds
        self.struct = FeedForwardStruct(
            addressof(gate.struct), addressof(up.struct), _norm(norm, shape[1]), gelu, down.struct
        )


class Layer:
    """All of one layer; its parts must fit each other.

    sizes: columns of x, rows of queries and of keys, and numbers of a head, with which
    a call must agree.
    """

    def __init__(self, inputs: Inputs, output: Addition, feed_forward: FeedForward) -> None:
        q, k, _ = inputs.weights
        self.sizes = inputs.hidden, q.rows, k.rows, inputs.dim
        if (output.rows, output.columns) != self.sizes[:2]:
            raise CacheError(
                f"got an output [{output.rows}, {output.columns}], expected {list(self.sizes[:2])}"
            )
        if feed_forward.hidden != inputs.hidden:
            raise CacheError(
                f"got {feed_forward.hidden} columns of feed-forward, expected {inputs.hidden}"
            )
        self._held = inputs, output, feed_forward
        self.kinds = inputs.kinds | output.kinds | feed_forward.kinds
        self.struct = LayerStruct(*(part.struct for part in self._held))


class Layers:
    """All layers of a network, of the same sizes, which are those of each.

    pointers: to their structs.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.sizes, self.count = layers[0].sizes, len(layers)
        for layer in layers:
            if layer.sizes != self.sizes:
                raise CacheError(
                    f"got a layer of {layer.sizes} columns, query and key rows, and numbers of a "
                    f"head, expected {self.sizes}"
                )
        self._held = layers
        self.kinds = frozenset[TensorType]().union(*(layer.kinds for layer in layers))
        self.pointers = (c_void_p * self.count)(*(addressof(layer.struct) for layer in layers))


def _check_heads(weights: Sequence[Weight], dim: int) -> None:
    """Raise CacheError unless weights make whole heads, as many of keys as of values."""
    (q, k, v), sizes = weights, [(weight.rows, weight.columns) for weight in weights]
    whole = dim > 0 and not any(weight.rows % dim for weight in weights)
    if not whole or sizes[1] != sizes[2] or not q.columns == k.columns == v.columns:
        raise CacheError(f"got weights {sizes} for heads of {dim}")


@cache
def _grid(kind: TensorType) -> Bytes | None:
    """The runs of weights that codes of this type name; None where they name none.

    All magnitudes, [runs, 4 or 8]; then all runs again as 16-bit words of the levels of
    their magnitudes, 4 or 2 bits each, the first lowest.
    """
    if (found := grid_of(kind)) is None:
        return None
    both: Bytes = np.concatenate([found.runs.ravel(), found.words.astype("<u2").view(np.uint8)])
    return both


def _optional(name: str, vector: Floats | None, size: int) -> int | None:
    return None if vector is None else checked(name, vector, np.float32, (size,))


def _norm(norm: Norm | None, *columns: int) -> NormStruct:
    """columns: as many as a norm may be over."""
    if norm is None:
        return NormStruct()
    size = norm.weight.size
    wanted = size if size in columns else columns[0]
    return NormStruct(checked("norm", norm.weight, np.float32, (wanted,)), size, norm.eps)


def _rope(rope: Rope) -> RopeStruct:
    where = checked("periods", rope.periods, np.float64, (None,))
    return RopeStruct(where, len(rope.periods), rope.apart)
