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

from kvcache.errors import CacheError
from kvcache.native import build, structs
from kvcache.native.structs import HEAD_DIM_STEP, Array, Bytes, Floats, address, strided

__all__ = ["HEAD_DIM_STEP", "Array", "Floats", "Library", "Weight", "library"]


class Weight:
    """A packed affine weight of MLX (group 32 or 64; 4, 5, 6 or 8 bits) for the kernels.

    codes: uint32 [rows, columns * bits / 32]; scales and biases: float16
    [rows, columns / group]. Holds the arrays, so that their memory stays.
    """

    def __init__(
        self, codes: Array, scales: Array, biases: Array, *, bits: int, group: int
    ) -> None:
        self.rows, self.columns = codes.shape[0], codes.shape[1] * 32 // bits
        if bits not in (4, 5, 6, 8) or group not in (32, 64):
            raise CacheError(f"got {bits} bits in groups of {group}, expected 4, 5, 6, 8 in 32, 64")
        if scales.dtype != np.float16 or biases.dtype != np.float16:
            raise CacheError(f"got {scales.dtype} scales, expected float16")
        self._arrays = codes, scales, biases
        self.struct = structs.Weight(
            *(address(array) for array in self._arrays), self.rows, self.columns, bits, group
        )


class Library:
    """The kernels. Make one by `library()`."""

    def __init__(self, compiled: ctypes.CDLL, threads: int) -> None:
        self._c = compiled
        self.threads = threads
        compiled.ember_start(threads)

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
        return int(reader(c_void_p(address(data)), c_int64(data.size)))

    def linear(self, x: Floats, weight: Weight) -> Floats:
        """x [rows, columns] times the weight's transpose."""
        _check_columns(x, weight)
        out = np.empty((len(x), weight.rows), np.float32)
        self._c.ember_linear(
            c_void_p(address(x)), c_int64(len(x)), byref(weight.struct), c_void_p(address(out))
        )
        return out

    def linear_add(self, x: Floats, weight: Weight, residual: Floats) -> Floats:
        """residual + `linear`."""
        _check_columns(x, weight)
        out = np.empty_like(residual)
        self._c.ember_linear_add(
            c_void_p(address(x)),
            c_int64(len(x)),
            byref(weight.struct),
            c_void_p(address(residual)),
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
        batch, length, _ = x.shape
        outs = tuple(
            np.empty((batch, weight.rows // dim, length, dim), np.float32) for weight in weights
        )
        self._c.ember_attention_inputs(
            c_void_p(address(x)),
            c_int64(batch),
            c_int64(length),
            c_void_p(address(norm)),
            c_float(eps),
            *(byref(weight.struct) for weight in weights),
            c_int64(dim),
            c_void_p(address(periods)),
            c_int64(len(periods)),
            c_int64(offset),
            *(c_void_p(address(out)) for out in outs),
        )
        return outs[0], outs[1], outs[2]

    def feed_forward(
        self, x: Floats, norm: Floats, eps: float, gate: Weight, up: Weight, down: Weight
    ) -> Floats:
        """x + down(silu(gate(n)) * up(n)) with n = norm(x); x [rows, hidden]."""
        out = np.empty_like(x)
        self._c.ember_feed_forward(
            c_void_p(address(x)),
            c_int64(len(x)),
            c_void_p(address(norm)),
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
        batch, _, queries, _ = q.shape
        position = held - queries
        lowest = np.zeros((batch, queries), np.int64)
        if padding is not None:
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
        batch, heads, queries, dim = q.shape
        if dim % HEAD_DIM_STEP:
            raise CacheError(f"got heads of {dim} dimensions, expected a multiple of 16")
        out = np.empty_like(q)
        stride = queries if lowest.ndim == 2 else 0
        where = address(lowest)
        self._c.ember_attend(
            byref(
                structs.AttentionShape(
                    batch, heads, kv_heads, queries, dim, position, scale, where, stride
                )
            ),
            c_void_p(address(q)),
            c_void_p(address(q_sink)),
            (structs.Piece * len(pieces))(*pieces),
            c_int64(len(pieces)),
            byref(blocks),
            c_void_p(address(out)),
        )
        return out

    def layers(
        self,
        shape: structs.LayersShape,
        weights: Sequence[structs.LayerWeights],
        memories: Sequence[structs.TierMemory],
        state: structs.TierState,
        x: Floats,
        *,
        checked: bool,
    ) -> int:
        """x [B, L, hidden] through all layers, in place; see layers.h.

        Returns how many layers ran: fewer than all where one was refused keys or
        values that are not finite.
        """
        count = len(weights)
        self._c.ember_layers.restype = c_int64
        done: int = self._c.ember_layers(
            byref(shape),
            (c_void_p * count)(*map(addressof, weights)),
            (c_void_p * count)(*map(addressof, memories)),
            byref(state),
            c_int64(count),
            c_int32(checked),
            c_void_p(address(x)),
        )
        return done

    def encode(self, form: structs.BlockForm, tokens: Array, records: Bytes) -> None:
        """Tokens [B, Hkv, N * M, D] to records [N, B, Hkv, bytes]."""
        blocks, batch, heads, _ = records.shape
        self._c.ember_encode(
            byref(form),
            byref(strided(tokens)),
            *(c_int64(n) for n in (blocks, batch, heads)),
            c_void_p(address(records)),
        )

    def decode(self, form: structs.BlockForm, records: Bytes) -> Floats:
        """Records [N, B, Hkv, bytes] to tokens [B, Hkv, N * M, D]."""
        blocks, batch, heads, _ = records.shape
        out = np.empty((batch, heads, blocks * form.tokens, form.dim), np.float32)
        self._c.ember_decode(
            byref(form),
            c_void_p(address(records)),
            *(c_int64(n) for n in (blocks, batch, heads)),
            c_void_p(address(out)),
        )
        return out

    def pack(self, form: structs.BlockForm, codes: Bytes, records: Bytes) -> None:
        """Write codes [..., M, D] into the first bytes of records [..., bytes]."""
        count = c_int64(records[..., 0].size)
        self._c.ember_pack(byref(form), c_void_p(address(codes)), count, c_void_p(address(records)))

    def unpack(self, form: structs.BlockForm, records: Bytes) -> Bytes:
        """The codes [..., M, D] of records [..., bytes]."""
        codes = np.empty((*records.shape[:-1], form.tokens, form.dim), np.uint8)
        count = c_int64(records[..., 0].size)
        self._c.ember_unpack(
            byref(form), c_void_p(address(records)), count, c_void_p(address(codes))
        )
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
    """EMBER_THREADS, or one per physical core that this process may use."""
    given = os.environ.get("EMBER_THREADS", "")
    if given.isdigit() and int(given) > 0:
        return int(given)
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


def _check_columns(x: Floats, weight: Weight) -> None:
    if x.shape[-1] != weight.columns:
        raise CacheError(f"got {x.shape[-1]} columns, expected {weight.columns}")
