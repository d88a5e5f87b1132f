"""The compiled kernels as Python functions on numpy arrays.

All arrays are float32 in C order unless said otherwise. One thread calls at a
time (the inference thread); the kernels' own threads live as long as the
process.
"""

import ctypes
import os
import sys
from ctypes import Structure, byref, c_char_p, c_float, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvcache.errors import CacheError
from kvcache.native import build

Floats = npt.NDArray[np.float32]
Array = npt.NDArray[np.generic]

# How unencoded keys and values are stored; bfloat16 as its bits.
ELEMENTS = {np.dtype(np.float16): 0, np.dtype(np.uint16): 1, np.dtype(np.float32): 2}

# Head dimensions come in whole vectors.
HEAD_DIM_STEP = 16


class _Weight(Structure):
    _fields_ = (
        ("codes", c_void_p),
        ("scales", c_void_p),
        ("biases", c_void_p),
        ("rows", c_int64),
        ("columns", c_int64),
        ("bits", c_int32),
        ("group", c_int32),
    )


class _Tokens(Structure):
    _fields_ = (("data", c_void_p), ("head_stride", c_int64), ("element", c_int32))


class _AttentionShape(Structure):
    _fields_ = (
        ("batch", c_int64),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("queries", c_int64),
        ("dim", c_int64),
        ("held", c_int64),
        ("scale", c_float),
        ("padding", c_void_p),
    )


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
        self.struct = _Weight(
            *(_address(array) for array in self._arrays), self.rows, self.columns, bits, group
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
        return int(reader(c_void_p(_address(data)), c_int64(data.size)))

    def linear(self, x: Floats, weight: Weight) -> Floats:
        """x [rows, columns] times the weight's transpose."""
        _check_columns(x, weight)
        out = np.empty((len(x), weight.rows), np.float32)
        self._c.ember_linear(
            c_void_p(_address(x)), c_int64(len(x)), byref(weight.struct), c_void_p(_address(out))
        )
        return out

    def linear_add(self, x: Floats, weight: Weight, residual: Floats) -> Floats:
        """residual + `linear`."""
        _check_columns(x, weight)
        out = np.empty_like(residual)
        self._c.ember_linear_add(
            c_void_p(_address(x)),
            c_int64(len(x)),
            byref(weight.struct),
            c_void_p(_address(residual)),
            c_void_p(_address(out)),
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
            c_void_p(_address(x)),
            c_int64(batch),
            c_int64(length),
            c_void_p(_address(norm)),
            c_float(eps),
            *(byref(weight.struct) for weight in weights),
            c_int64(dim),
            c_void_p(_address(periods)),
            c_int64(len(periods)),
            c_int64(offset),
            *(c_void_p(_address(out)) for out in outs),
        )
        return outs[0], outs[1], outs[2]

    def feed_forward(
        self, x: Floats, norm: Floats, eps: float, gate: Weight, up: Weight, down: Weight
    ) -> Floats:
        """x + down(silu(gate(n)) * up(n)) with n = norm(x); x [rows, hidden]."""
        out = np.empty_like(x)
        self._c.ember_feed_forward(
            c_void_p(_address(x)),
            c_int64(len(x)),
            c_void_p(_address(norm)),
            c_float(eps),
            byref(gate.struct),
            byref(up.struct),
            byref(down.struct),
            c_void_p(_address(out)),
        )
        return out

    def embed(self, ids: npt.NDArray[np.int64], table: Weight) -> Floats:
        """The table's rows `ids` [n] as [n, columns]."""
        if ids.size and not 0 <= ids.min() <= ids.max() < table.rows:
            raise CacheError(f"got token ids up to {ids.max()}, expected 0 to {table.rows - 1}")
        out = np.empty((len(ids), table.columns), np.float32)
        self._c.ember_embed(
            byref(table.struct),
            c_void_p(_address(ids)),
            c_int64(len(ids)),
            c_void_p(_address(out)),
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
        batch, heads, queries, dim = q.shape
        if dim % HEAD_DIM_STEP:
            raise CacheError(f"got heads of {dim} dimensions, expected a multiple of 16")
        out = np.empty_like(q)
        shape = _AttentionShape(
            batch,
            heads,
            keys.shape[1],
            queries,
            dim,
            held,
            scale,
            None if padding is None else _address(padding),
        )
        stride = keys.shape[2] * dim
        element = ELEMENTS[keys.dtype]
        self._c.ember_attend(
            byref(shape),
            c_void_p(_address(q)),
            byref(_Tokens(_address(keys), stride, element)),
            byref(_Tokens(_address(values), stride, element)),
            c_void_p(_address(out)),
        )
        return out


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


def _address(array: Array) -> int:
    """Where a C-ordered array's memory begins."""
    interface = array.__array_interface__
    if interface["strides"] is not None:
        raise CacheError(f"got an array of shape {array.shape} that is not in C order")
    address: int = interface["data"][0]
    return address
