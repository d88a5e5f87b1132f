"""The network's compiled kernels as Python functions on numpy arrays.

All arrays are float32 in C order unless said otherwise. Rows are of sequences of `length` tokens
each (None: of one): a sequence's numbers are to the last bit what they are alone. One thread calls
at a time (the inference thread). Threads and attention are those of the cache's kernels.
"""

from collections.abc import Iterable, Sequence, Set
from ctypes import Array, addressof, byref, c_double, c_float, c_int32, c_int64, c_void_p
from functools import cache
from math import inf
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvcache import Backend, CacheError
from kvcache.codecs import Codec
from kvcache.config import on_gpu
from kvcache.errors import NativeUnavailableError
from kvcache.native import build, structs
from kvcache.native import library as caches
from kvcache.native.codec import kernels_of
from kvcache.native.structs import Bytes, Floats, address, checked
from models.gguf.header import TensorInfo
from models.gguf.tensor_types import TensorType
from models.native.mapping import Mapping
from models.native.packed import Addition, FeedForward, Inputs, Layers, RowNorm, Weight

# One for each cache of a layer.
TierSteps = Array[structs.TierStep]

_FOLDER, _CACHES = Path(__file__).parent, Path(caches.__file__).parent
# What every network needs; what is computed with weights is compiled for the types that there are.
SOURCES = build.Sources(entry=_FOLDER / "network.cpp", headers=(_CACHES,))
# The headers that hold what is each type's own.
_FLOATS, _SIMPLE, _K, _TABLES = (
    "blocks_floats.h",
    "blocks_simple.h",
    "panels_k.h",
    "few_rows_tables.h",
)
_HEADERS = {
    TensorType.F32: _FLOATS,
    TensorType.F16: _FLOATS,
    TensorType.BF16: _FLOATS,
    TensorType.Q4_0: _SIMPLE,
    TensorType.Q4_1: _SIMPLE,
    TensorType.Q5_0: _SIMPLE,
    TensorType.Q5_1: _SIMPLE,
    TensorType.Q8_0: _SIMPLE,
    TensorType.IQ4_NL: _SIMPLE,
    TensorType.IQ4_XS: _SIMPLE,
    TensorType.MXFP4: _SIMPLE,
    TensorType.Q2_K: _K,
    TensorType.Q3_K: _K,
    TensorType.Q4_K: _K,
    TensorType.Q5_K: _K,
    TensorType.Q6_K: _K,
    TensorType.IQ2_XXS: _TABLES,
    TensorType.IQ2_XS: _TABLES,
    TensorType.IQ2_S: _TABLES,
    TensorType.IQ3_XXS: _TABLES,
    TensorType.IQ3_S: _TABLES,
}


def products(kind: TensorType) -> build.Sources:
    """What is computed with weights of a type (kinds.h)."""
    header = _HEADERS[kind]
    # A twelfth slower without all of it.
    fast = ("-O3",) if header == _FLOATS else ()
    told = *fast, f"-DEMBER_TYPE={kind.name}", f'-DEMBER_FAMILY="{header}"'
    return build.Sources(entry=_FOLDER / "type.cpp", headers=(_CACHES,), flags=told)


class Kernels:
    """The kernels. Make one by `kernels()`."""

    def __init__(self, library: caches.Library) -> None:
        """library: of the cache; it must stay. Raises NativeUnavailableError."""
        self._c = build.load(SOURCES.beside(library.sources))
        self._library = library
        self._taken = frozenset[TensorType]()
        self._c.network_start(*library.lend())

    def take(self, kinds: Set[TensorType]) -> None:
        """Be ready for weights of these types; compiled where nobody has had such before.

        Raises NativeUnavailableError.
        """
        if kinds <= self._taken:
            return
        new = sorted(kinds - self._taken)
        wanted = [products(kind).beside(self._library.sources) for kind in new]
        build.build(wanted)
        for kind, sources in zip(new, wanted, strict=True):
            find = build.load(sources).network_kind
            find.restype = c_void_p
            self._c.network_take(c_int32(kind), c_void_p(find()))
            self._taken |= {kind}

    def map(self, file: int, size: int) -> Mapping:
        """The first `size` bytes of an open file in memory. Raises OSError."""
        return Mapping(self._c, file, size)

    def are_finite(self, data: Bytes, kind: TensorType) -> bool:
        """Whether all weights in bytes [rows, row bytes] of whole blocks are finite."""
        where = checked("data", data, np.uint8, (None, None))
        if data.nbytes % kind.block_bytes:
            raise CacheError(f"got {data.nbytes} bytes, expected blocks of {kind.block_bytes}")
        self.take({kind})
        found = self._c.network_are_finite(c_void_p(where), c_int64(data.nbytes), c_int32(kind))
        return bool(found)

    def linear(self, x: Floats, weight: Weight, *, length: int | None = None) -> Floats:
        """x [rows, columns] times the weight's transpose."""
        self.take(weight.kinds)
        where = checked("x", x, np.float32, (None, weight.columns))
        out = np.empty((len(x), weight.rows), np.float32)
        self._c.network_linear(
            c_void_p(where),
            *_sequences(len(x), length),
            byref(weight.struct),
            c_void_p(address(out)),
        )
        return out

    def embed(self, ids: npt.NDArray[np.int64], table: Weight, *, factor: float = 1.0) -> Floats:
        """The table's rows `ids` [n] times `factor`, as [n, columns]."""
        if ids.size and not 0 <= ids.min() <= ids.max() < table.rows:
            raise CacheError(
                f"got token ids {ids.min()} to {ids.max()}, expected 0 to {table.rows - 1}"
            )
        self.take(table.kinds)
        out = np.empty((len(ids), table.columns), np.float32)
        self._c.network_embed(
            byref(table.struct),
            c_void_p(address(ids)),
            c_int64(len(ids)),
            c_float(factor),
            c_void_p(address(out)),
        )
        return out

    def attention_inputs(
        self, x: Floats, inputs: Inputs, *, starts: Sequence[int]
    ) -> tuple[Floats, Floats, Floats]:
        """Queries, keys and values of x [B, L, hidden], as [B, heads, L, dim].

        starts: the position of each row's first token; what stands before 0 is padding.
        """
        self.take(inputs.kinds)
        where = checked("x", x, np.float32, (None, None, inputs.hidden))
        batch, length, _ = x.shape
        outs = tuple(
            np.empty((batch, weight.rows // inputs.dim, length, inputs.dim), np.float32)
            for weight in inputs.weights
        )
        self._c.network_attention_inputs(
            c_void_p(where),
            c_int64(batch),
            c_int64(length),
            _starts(starts, batch),
            byref(inputs.struct),
            *(c_void_p(address(out)) for out in outs),
        )
        return outs[0], outs[1], outs[2]

    def normalize(self, x: Floats, norm: RowNorm) -> Floats:
        """x [rows, columns], each row normed."""
        where = checked("x", x, np.float32, (None, norm.columns))
        out = np.empty_like(x)
        self._c.network_normalize(
            c_void_p(where),
            c_int64(len(x)),
            c_int64(norm.columns),
            byref(norm.struct),
            c_void_p(address(out)),
        )
        return out

    def add(
        self, x: Floats, addition: Addition, residual: Floats, *, length: int | None = None
    ) -> Floats:
        """residual [rows, columns of the product] and what x [rows, columns] adds to it."""
        self.take(addition.kinds)
        where = checked("x", x, np.float32, (None, addition.columns))
        added = checked("residual", residual, np.float32, (len(x), addition.rows))
        out = np.empty_like(residual)
        self._c.network_add(
            c_void_p(where),
            *_sequences(len(x), length),
            byref(addition.struct),
            c_void_p(added),
            c_void_p(address(out)),
        )
        return out

    def feed_forward(self, x: Floats, weights: FeedForward, *, length: int | None = None) -> Floats:
        """x [rows, hidden] and what the feed-forward part adds to it."""
        self.take(weights.kinds)
        where = checked("x", x, np.float32, (None, weights.hidden))
        out = np.empty_like(x)
        self._c.network_feed_forward(
            c_void_p(where),
            *_sequences(len(x), length),
            byref(weights.struct),
            c_void_p(address(out)),
        )
        return out

    def layers(
        self,
        steps: Sequence[TierSteps],
        starts: Sequence[int],
        weights: Layers,
        memories: Sequence[structs.TierMemory],
        x: Floats,
        done: c_int64,
        *,
        seconds: float = inf,
    ) -> bool:
        """x [B, L, hidden] through layers `done` to the last, in place; see layers.h.

        steps: of each layer, one for each of its caches, which share the rows of x; one
        object for layers whose steps are the same. starts: as for `attention_inputs`. memories:
        of the first layer's caches, then the second's, ... seconds: after which no further layer
        begins. `done` counts the layers as they end. Returns False where a cache refused the keys
        or values of the next.
        """
        count, caches, first = weights.count, len(steps[0]), steps[0][0]
        _check_layers(steps, weights, len(memories))
        self.take(weights.kinds)
        if not 0 <= done.value < count:
            raise CacheError(f"got {done.value} layers that ran, expected fewer than {count}")
        shape = caches * first.batch, first.length, weights.sizes[0]
        where = checked("x", x, np.float32, shape, written=True)
        accepted = self._c.network_layers(
            (c_void_p * count)(*map(addressof, steps)),
            c_int64(caches),
            _starts(starts, shape[0]),
            weights.pointers,
            (c_void_p * len(memories))(*map(addressof, memories)),
            c_int64(count),
            c_double(seconds),
            byref(done),
            c_void_p(where),
        )
        return bool(accepted)


def _starts(given: Sequence[int], rows: int) -> Array[c_int64]:
    """Positions of the first tokens [rows]."""
    if len(given) != rows:
        raise CacheError(f"got positions of {len(given)} rows, expected {rows}")
    return (c_int64 * rows)(*given)


def _sequences(rows: int, length: int | None) -> tuple[c_int64, c_int64]:
    """How many sequences there are among rows, and tokens of each."""
    if length is None:
        return c_int64(1), c_int64(rows)
    if length < 1 or rows % length:
        raise CacheError(f"got {rows} rows, expected whole sequences of {length} tokens")
    return c_int64(rows // length), c_int64(length)


def _check_layers(steps: Sequence[TierSteps], weights: Layers, memories: int) -> None:
    """Raise CacheError unless all fit each other."""
    different, caches = dict(zip(map(id, steps), steps, strict=True)).values(), len(steps[0])
    if (len(steps), memories) != (weights.count, weights.count * caches) or any(
        len(each) != caches for each in different
    ):
        raise CacheError(
            f"got {weights.count} layers, steps for {len(steps)}, and {memories} caches"
        )
    forms = {
        (step.batch, step.queries, step.length, step.heads, step.kv_heads, step.dim)
        for each in different
        for step in each
    }
    _, queries, length, heads, kv_heads, dim = forms.pop()
    if forms or queries != length:
        raise CacheError(f"got steps of {length} tokens and {queries} queries, expected all alike")
    sizes = weights.sizes[0], heads * dim, kv_heads * dim, dim
    if weights.sizes != sizes:
        raise CacheError(
            f"got layers of {weights.sizes} columns, query and key rows, and numbers of a head, "
            f"expected {sizes}"
        )


def kinds_of(entries: Iterable[TensorInfo]) -> frozenset[TensorType]:
    """The types of a file's matrices; its vectors are read as numbers."""
    return frozenset(info.type for info in entries if len(info.shape) > 1)


def missing(backend: Backend, kinds: Iterable[TensorType] = ()) -> list[build.Sources]:
    """Of these kernels and the cache's, what `backend` uses here and has to be compiled first.

    kinds: of weights. None where nothing can compile it, which whoever loads them is told. What
    is computed with codes is not needed before the first of them: `missing_codings`.
    """
    return _missing(backend, (caches.SOURCES, SOURCES, *map(products, kinds)))


def missing_codings(backend: Backend, codecs: Iterable[Codec]) -> list[build.Sources]:
    """The same of what a cache of these codecs needs once it encodes."""
    return _missing(backend, (needed for each in codecs for needed in kernels_of(each)))


def _missing(backend: Backend, wanted: Iterable[build.Sources]) -> list[build.Sources]:
    if on_gpu() or caches.is_refused() or backend not in (Backend.AUTO, Backend.CPU):
        return []
    try:
        return build.missing(dict.fromkeys(wanted))
    except NativeUnavailableError:
        return []


@cache
def kernels() -> Kernels:
    """The kernels, compiled on first use. Raises NativeUnavailableError."""
    return Kernels(caches.library())
