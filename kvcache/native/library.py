"""The compiled kernels as Python functions on numpy arrays.

All arrays are float32 in C order unless said otherwise. One thread calls at a
time (the inference thread); the kernels' own threads live as long as the
process.
"""

import ctypes
import os
import sys
from collections.abc import Sequence
from ctypes import addressof, byref, c_char_p, c_float, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvcache.errors import CacheError, EmberError, quoted
from kvcache.native import build, structs
from kvcache.native.structs import HEAD_DIM_STEP, Array, Bytes, Floats, address, checked, strided
from kvcache.native.weights import Layer, Weight

__all__ = ["HEAD_DIM_STEP", "Array", "Floats", "Library", "library"]

# As many as `bench --threads` takes.
_MOST_THREADS = 1024


class Library:
    """The kernels. Make one by `library()`.

    threads: that there are, the calling one among them; fewer than asked for where the
    system gives no more.
    """

    def __init__(self, compiled: ctypes.CDLL, threads: int) -> None:
        self._c = compiled
        self.threads = int(compiled.ember_start(threads))

    def close(self) -> None:
        """End the kernels' threads; nothing may be called afterwards."""
        self._c.ember_stop()

    @property
    def instructions(self) -> str:
        """Which form of the products runs."""
        name = self._c.ember_instructions
        name.restype = c_char_p
        return str(name().decode())

    def read(self, data: npt.NDArray[np.uint8]) -> int:
        """The sum of every 64th byte, read by all threads; for measuring memory."""
        reader = self._c.ember_read
        reader.restype = c_int64
        where = checked("data", data, np.uint8, (None,))
        return int(reader(c_void_p(where), c_int64(data.size)))

    def linear(self, x: Floats, weight: Weight) -> Floats:
        """x [rows, columns] times the weight's transpose."""
        where = checked("x", x, np.float32, (None, weight.columns))
        out = np.empty((len(x), weight.rows), np.float32)
        self._c.ember_linear(
            c_void_p(where), c_int64(len(x)), byref(weight.struct), c_void_p(address(out))
        )
        return out

    def linear_add(self, x: Floats, weight: Weight, residual: Floats) -> Floats:
        """residual + `linear`."""
        where = checked("x", x, np.float32, (None, weight.columns))
        added = checked("residual", residual, np.float32, (len(x), weight.rows))
        out = np.empty_like(residual)
        self._c.ember_linear_add(
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
        weights: tuple[Weight, Weight, Weight],
        *,
        dim: int,
        periods: npt.NDArray[np.float64],
        offset: int,
    ) -> tuple[Floats, Floats, Floats]:
        """Queries, keys and values of normed x [B, L, hidden], as [B, heads, L, dim].

        Queries and keys are turned by position / periods[i] in their pairs
        (2i, 2i + 1).
        """
        where = checked("x", x, np.float32, (None, None, weights[0].columns))
        batch, length, hidden = x.shape
        sizes = [(weight.rows, weight.columns) for weight in weights]
        whole = dim > 0 and not any(rows % dim for rows, _ in sizes)
        if not whole or sizes[1] != sizes[2] or {hidden} != {columns for _, columns in sizes}:
            raise CacheError(f"got weights {sizes} for x {x.shape} and heads of {dim}")
        if 2 * len(periods) > dim or offset < 0:
            raise CacheError(f"got {len(periods)} periods, heads of {dim}, position {offset}")
        outs = tuple(
            np.empty((batch, weight.rows // dim, length, dim), np.float32) for weight in weights
        )
        self._c.ember_attention_inputs(
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
        self._c.ember_feed_forward(
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
        self._c.ember_embed(
            byref(table.struct),
            c_void_p(address(ids)),
            c_int64(len(ids)),
            c_void_p(address(out)),
        )
        return out

    def attend(
        self,
        q: Floats,
        keys: Array,
        values: Array,
        *,
        held: int,
        scale: float,
        padding: npt.NDArray[np.int32] | None = None,
    ) -> Floats:
        """Causal attention of q [B, Hq, L, D] to the first `held` tokens.

        keys, values: [B, Hkv, capacity, D], D a multiple of 16, of a dtype in
        ELEMENTS; query i is token held - L + i. padding [B]: hidden leading
        tokens of each row.
        """
        batch, _, queries, dim = _query_shape(q)
        kv = keys.shape
        if len(kv) != 4 or kv != values.shape or (kv[0], kv[3]) != (batch, dim):
            raise CacheError(f"got keys {kv} and values {values.shape} for queries {q.shape}")
        if not queries <= held <= kv[2]:
            raise CacheError(f"got {queries} queries, {held} held of {kv[2]} tokens")
        position = held - queries
        lowest = np.zeros((batch, queries), np.int64)
        if padding is not None:
            checked("padding", padding, np.int32, (batch,))
            # Padding sees padding, so that no row is without tokens.
            real = np.arange(position, held) >= padding[:, None]
            lowest = np.where(real, padding[:, None], 0).astype(np.int64)
        piece = structs.Piece(strided(keys), strided(values), held, 0, 0)
        return self.attend_pieces(
            q, q, [piece], structs.Blocks(), keys.shape[1], lowest, position, scale
        )

    def attend_pieces(
        self,
        q: Floats,
        q_sink: Floats,
        pieces: Sequence[structs.Piece],
        blocks: structs.Blocks,
        kv_heads: int,
        lowest: npt.NDArray[np.int64],
        position: int,
        scale: float,
    ) -> Floats:
        """Attention over unencoded pieces and encoded blocks, see `tiers.attend_tiers`.

        lowest: [L], or [B, L].
        """
        batch, heads, queries, dim = _query_shape(q)
        if dim % HEAD_DIM_STEP:
            raise CacheError(f"got heads of {dim} dimensions, expected a multiple of 16")
        if kv_heads < 1 or heads % kv_heads or position < 0:
            raise CacheError(f"got {heads} heads over {kv_heads} KV heads, position {position}")
        out = np.empty(q.shape, np.float32)
        stride = queries if lowest.ndim == 2 else 0
        where = checked("lowest", lowest, np.int64, (batch, queries)[lowest.ndim == 1 :])
        self._c.ember_attend(
            byref(
                structs.AttentionShape(
                    batch, heads, kv_heads, queries, dim, position, scale, where, stride
                )
            ),
            c_void_p(address(q)),
            c_void_p(checked("q_sink", q_sink, np.float32, q.shape)),
            (structs.Piece * len(pieces))(*pieces),
            c_int64(len(pieces)),
            byref(blocks),
            c_void_p(address(out)),
        )
        return out

    def layers(
        self,
        shape: structs.LayersShape,
        weights: Sequence[Layer],
        memories: Sequence[structs.TierMemory],
        state: structs.TierState,
        x: Floats,
        *,
        finite: bool,
    ) -> int:
        """x [B, L, hidden] through all layers, in place; see layers.h.

        finite: refuse keys and values that are not. Returns how many layers ran:
        fewer than all where one was refused.
        """
        count = len(weights)
        hidden, q_rows, kv_rows = weights[0].sizes
        heads = (hidden, shape.heads * shape.dim, shape.kv_heads * shape.dim)
        if len(memories) != count or any(weight.sizes != heads for weight in weights):
            raise CacheError(
                f"got {count} layers of {q_rows} query and {kv_rows} key rows for "
                f"{len(memories)} caches and heads of {shape.dim}: {shape.heads}, {shape.kv_heads}"
            )
        where = checked("x", x, np.float32, (shape.batch, shape.length, hidden), written=True)
        self._c.ember_layers.restype = c_int64
        done: int = self._c.ember_layers(
            byref(shape),
            (c_void_p * count)(*(addressof(weight.struct) for weight in weights)),
            (c_void_p * count)(*map(addressof, memories)),
            byref(state),
            c_int64(count),
            c_int32(finite),
            c_void_p(where),
        )
        return done

    def encode(self, form: structs.BlockForm, tokens: Array, records: Bytes) -> None:
        """Tokens [B, Hkv, N * M, D] to records [N, B, Hkv, bytes]."""
        where = checked(
            "records", records, np.uint8, (None, None, None, form.record_bytes), written=True
        )
        blocks, batch, heads, _ = records.shape
        if tokens.shape != (batch, heads, blocks * form.tokens, form.dim):
            raise CacheError(f"got tokens {tokens.shape} for records {records.shape}")
        self._c.ember_encode(
            byref(form),
            byref(strided(tokens)),
            *(c_int64(n) for n in (blocks, batch, heads)),
            c_void_p(where),
        )

    def decode(self, form: structs.BlockForm, records: Bytes) -> Floats:
        """Records [N, B, Hkv, bytes] to tokens [B, Hkv, N * M, D]."""
        where = checked("records", records, np.uint8, (None, None, None, form.record_bytes))
        blocks, batch, heads, _ = records.shape
        out = np.empty((batch, heads, blocks * form.tokens, form.dim), np.float32)
        self._c.ember_decode(
            byref(form),
            c_void_p(where),
            *(c_int64(n) for n in (blocks, batch, heads)),
            c_void_p(address(out)),
        )
        return out

    def pack(self, form: structs.BlockForm, codes: Bytes, records: Bytes) -> None:
        """Write codes [..., M, D] into the first bytes of records [..., bytes]."""
        outer = records.shape[:-1]
        read = checked("codes", codes, np.uint8, (*outer, form.tokens, form.dim))
        written = checked("records", records, np.uint8, (*outer, form.record_bytes), written=True)
        count = c_int64(records[..., 0].size)
        self._c.ember_pack(byref(form), c_void_p(read), count, c_void_p(written))

    def unpack(self, form: structs.BlockForm, records: Bytes) -> Bytes:
        """The codes [..., M, D] of records [..., bytes]."""
        outer = records.shape[:-1]
        where = checked("records", records, np.uint8, (*outer, form.record_bytes))
        codes = np.empty((*outer, form.tokens, form.dim), np.uint8)
        count = c_int64(records[..., 0].size)
        self._c.ember_unpack(byref(form), c_void_p(where), count, c_void_p(address(codes)))
        return codes


def is_tried() -> bool:
    """Whether this process has the kernels already, or knows that it cannot have them."""
    return _attempt.cache_info().currsize > 0


def library() -> Library:
    """The kernels, compiled on first use. Raises NativeUnavailableError, the same each time."""
    found = _attempt()
    if isinstance(found, build.NativeUnavailableError):
        raise found
    return found


@cache
def _attempt() -> Library | build.NativeUnavailableError:
    try:
        return Library(build.load(), _threads())
    except build.NativeUnavailableError as error:
        return error


def _threads() -> int:
    """EMBER_THREADS, or one per physical core that this process may use.

    Raises EmberError for what is no number of threads: a typing error would cost speed
    in silence, and too many threads the process.
    """
    if given := os.environ.get("EMBER_THREADS"):
        # More digits than that might not even be a number to Python.
        threads = int(given) if given.isdecimal() and len(given) < 10 else 0
        if not 0 < threads <= _MOST_THREADS:
            raise EmberError(
                f"got EMBER_THREADS={quoted(given)}, expected a whole number, 1 to {_MOST_THREADS}"
            )
        return threads
    if sys.platform != "linux":
        return os.cpu_count() or 1
    return len({_core(cpu) for cpu in os.sched_getaffinity(0)})


def _core(cpu: int) -> str:
    """The physical core of a logical processor: the list of its hardware threads."""
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    try:
        return path.read_text()
    except OSError:
        return str(cpu)


def _query_shape(q: Floats) -> tuple[int, int, int, int]:
    """B, Hq, L and D of queries. Raises CacheError."""
    checked("q", q, np.float32, (None, None, None, None))
    batch, heads, queries, dim = q.shape
    return batch, heads, queries, dim
