"""The network's compiled kernels as Python functions on numpy arrays.

All arrays are float32 in C order unless said otherwise. One thread calls at a
time (the inference thread). Threads and attention are those of the cache's
kernels.
"""

from collections.abc import Sequence
from ctypes import CDLL, addressof, byref, c_float, c_int64, c_void_p
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvcache import CacheError
from kvcache.native import build, structs
from kvcache.native import library as caches
from kvcache.native.structs import Floats, address, checked
from models.native.packed import Layer, Weight

_FOLDER = Path(__file__).parent
SOURCES = build.Sources(entry=_FOLDER / "network.cpp", headers=(Path(caches.__file__).parent,))


class Kernels:
    """The kernels. Make one by `kernels()`."""

    def __init__(self, compiled: CDLL, library: caches.Library) -> None:
        """library: of the cache; it must stay."""
        self._c = compiled
        self._library = library
        compiled.network_start(*library.lend())

    def linear(self, x: Floats, weight: Weight) -> Floats:
        """x [rows, columns] times the weight's transpose."""
        where = checked("x", x, np.float32, (None, weight.columns))
        out = np.empty((len(x), weight.rows), np.float32)
        self._c.network_linear(
            c_void_p(where), c_int64(len(x)), byref(weight.struct), c_void_p(address(out))
        )
        return out

    def linear_add(self, x: Floats, weight: Weight, residual: Floats) -> Floats:
        """residual + `linear`."""
        where = checked("x", x, np.float32, (None, weight.columns))
        added = checked("residual", residual, np.float32, (len(x), weight.rows))
        out = np.empty_like(residual)
        self._c.network_linear_add(
            c_void_p(where),
            c_int64(len(x)),
            byref(weight.struct),
            c_void_p(added),
            c_void_p(address(out)),
        )
        return out

    def attention_inputs(
        self,
        x: Floats,
        norm: Floats,
        eps: float,
        weights: Sequence[Weight],
        *,
        dim: int,
        periods: npt.NDArray[np.float64],
        offset: int,
    ) -> tuple[Floats, Floats, Floats]:
        """Queries, keys and values of normed x [B, L, hidden], as [B, heads, L, dim].

        weights: of these three. Queries and keys are turned by position / periods[i] in their pairs
        (2i, 2i + 1).
        """
        where = checked("x", x, np.float32, (None, None, weights[0].columns))
        batch, length, hidden = x.shape
        _check_heads(weights, hidden, dim)
        if 2 * len(periods) > dim or offset < 0:
            raise CacheError(f"got {len(periods)} periods, heads of {dim}, position {offset}")
        outs = tuple(
            np.empty((batch, weight.rows // dim, length, dim), np.float32) for weight in weights
        )
        self._c.network_attention_inputs(
            c_void_p(where),
            c_int64(batch),
            c_int64(length),
            c_void_p(checked("norm", norm, np.float32, (hidden,))),
            c_float(eps),
            *(byref(weight.struct) for weight in weights),
            c_int64(dim),
            c_void_p(checked("periods", periods, np.float64, (None,))),
            c_int64(len(periods)),
            c_int64(offset),
            *(c_void_p(address(out)) for out in outs),
        )
        return outs[0], outs[1], outs[2]

    def feed_forward(
        self, x: Floats, norm: Floats, eps: float, gate: Weight, up: Weight, down: Weight
    ) -> Floats:
        """x + down(silu(gate(n)) * up(n)) with n = norm(x); x [rows, hidden]."""
        hidden, inner = down.rows, down.columns
        if any((w.rows, w.columns) != (inner, hidden) for w in (gate, up)):
            raise CacheError(f"got a gate or an up that is not [{inner}, {hidden}], as down is")
        where = checked("x", x, np.float32, (None, hidden))
        out = np.empty_like(x)
        self._c.network_feed_forward(
            c_void_p(where),
            c_int64(len(x)),
            c_void_p(checked("norm", norm, np.float32, (hidden,))),
            c_float(eps),
            byref(gate.struct),
            byref(up.struct),
            byref(down.struct),
            c_void_p(address(out)),
        )
        return out

    def embed(self, ids: npt.NDArray[np.int64], table: Weight) -> Floats:
        """The table's rows `ids` [n] as [n, columns]."""
        if ids.size and not 0 <= ids.min() <= ids.max() < table.rows:
            raise CacheError(
                f"got token ids {ids.min()} to {ids.max()}, expected 0 to {table.rows - 1}"
            )
        out = np.empty((len(ids), table.columns), np.float32)
        self._c.network_embed(
            byref(table.struct),
            c_void_p(address(ids)),
            c_int64(len(ids)),
            c_void_p(address(out)),
        )
        return out

    def layers(
        self,
        steps: Sequence[structs.TierStep],
        offset: int,
        periods: npt.NDArray[np.float64],
        weights: Sequence[Layer],
        memories: Sequence[structs.TierMemory],
        x: Floats,
    ) -> int:
        """x [B, L, hidden] through all layers, in place; see layers.h.

        steps: of the caches of a layer, which share the rows of x. offset, periods: of the
        rope, as in `attention_inputs`. memories: of the first layer's caches, then the
        second's, ... Returns how many layers ran: fewer than all where a cache refused
        the keys or values of one.
        """
        count, caches, step = len(weights), len(steps), steps[0]
        hidden, q_rows, kv_rows = weights[0].sizes
        sizes = (hidden, step.heads * step.dim, step.kv_heads * step.dim)
        if len(memories) != count * caches or any(weight.sizes != sizes for weight in weights):
            raise CacheError(
                f"got {count} layers of {q_rows} query and {kv_rows} key rows for "
                f"{len(memories)} caches and heads of {step.dim}: {step.heads}, {step.kv_heads}"
            )
        if 2 * len(periods) > step.dim:
            raise CacheError(f"got {len(periods)} periods, heads of {step.dim}")
        shape = caches * step.batch, step.length, hidden
        where = checked("x", x, np.float32, shape, written=True)
        self._c.network_layers.restype = c_int64
        done: int = self._c.network_layers(
            (structs.TierStep * caches)(*steps),
            c_int64(caches),
            c_int64(offset),
            c_void_p(checked("periods", periods, np.float64, (None,))),
            c_int64(len(periods)),
            (c_void_p * count)(*(addressof(weight.struct) for weight in weights)),
            (c_void_p * len(memories))(*map(addressof, memories)),
            c_int64(count),
            c_void_p(where),
        )
        return done


def _check_heads(weights: Sequence[Weight], hidden: int, dim: int) -> None:
    """Raise CacheError unless weights make whole heads, as many of keys as of values."""
    sizes = [(weight.rows, weight.columns) for weight in weights]
    whole = dim > 0 and not any(rows % dim for rows, _ in sizes)
    if not whole or sizes[1] != sizes[2] or {hidden} != {columns for _, columns in sizes}:
        raise CacheError(f"got weights {sizes} for {hidden} columns of x and heads of {dim}")


@cache
def kernels() -> Kernels:
    """The kernels, compiled on first use. Raises NativeUnavailableError."""
    return Kernels(build.load(SOURCES), caches.library())
