"""The arguments of the kernels as C has them; each class mirrors a struct of the headers."""

from ctypes import Structure, c_float, c_int32, c_int64, c_void_p

import numpy as np
import numpy.typing as npt

from kvcache.errors import CacheError

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Array = npt.NDArray[np.generic]

# How unencoded keys and values are stored; bfloat16 as its bits.
ELEMENTS = {np.dtype(np.float16): 0, np.dtype(np.uint16): 1, np.dtype(np.float32): 2}

# Head dimensions come in whole vectors.
HEAD_DIM_STEP = 16

MOST_LEVELS = 16


class Strided(Structure):
    """unencoded.h"""

    _fields_ = (
        ("data", c_void_p),
        ("batch_stride", c_int64),
        ("head_stride", c_int64),
        ("token_stride", c_int64),
        ("element", c_int32),
    )


class BlockForm(Structure):
    """record.h"""

    _fields_ = (
        ("family", c_int32),
        ("role", c_int32),
        ("bits", c_int32),
        ("tokens", c_int64),
        ("dim", c_int64),
        ("group", c_int64),
        ("token_scales", c_int64),
        ("token_zeros", c_int64),
        ("channel_scales", c_int64),
        ("channel_zeros", c_int64),
        ("record_bytes", c_int64),
        ("centre", c_float),
        ("levels", c_int32),
        ("table", c_float * MOST_LEVELS),
        ("signs", c_void_p),
        ("basis", c_void_p),
        ("inverse", c_void_p),
        ("order", c_void_p),
        ("spread", c_void_p),
        ("span", c_float),
        ("coding", c_void_p),
    )


class Ring(Structure):
    """tier_step.h"""

    _fields_ = (("keys", Strided), ("values", Strided), ("capacity", c_int64))


class TierMemory(Structure):
    """tier_step.h"""

    _fields_ = (
        ("pinned", Ring),
        ("hot", Ring),
        ("unencoded", Ring),
        ("key_form", c_void_p),
        ("value_form", c_void_p),
        ("keys", c_void_p),
        ("values", c_void_p),
    )


class TierStep(Structure):
    """tier_step.h"""

    _fields_ = (
        ("batch", c_int64),
        ("queries", c_int64),
        ("length", c_int64),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("dim", c_int64),
        ("scale", c_float),
        ("finite", c_int32),
        ("periods", c_void_p),
        ("pairs", c_int64),
        ("apart", c_int32),
        ("gone", c_void_p),
        ("lowest", c_void_p),
        ("lowest_stride", c_int64),
        ("pinned", c_int64),
        ("start", c_int64),
        ("block", c_int64),
        ("slots", c_int64),
        ("total", c_int64),
        ("first", c_int64),
        ("end", c_int64),
        ("next_first", c_int64),
        ("next_end", c_int64),
    )


def address(array: Array) -> int:
    """Where a C-ordered array's memory begins."""
    interface = array.__array_interface__
    if interface["strides"] is not None:
        raise CacheError(f"got an array of shape {array.shape} that is not in C order")
    found: int = interface["data"][0]
    return found


def checked(
    name: str, array: Array, dtype: type, shape: tuple[int | None, ...], *, written: bool = False
) -> int:
    """Where an array's memory begins, once it is what the kernels read, or write.

    shape: None for any extent. Raises CacheError for another dtype or shape, or
    memory that is not in C order, misaligned, or not to be written.
    """
    if array.dtype != dtype or len(shape) != array.ndim:
        raise _unlike(name, array, dtype, shape)
    for got, want in zip(array.shape, shape, strict=True):
        if want is not None and got != want:
            raise _unlike(name, array, dtype, shape)
    flags = array.flags
    if not flags.aligned or (written and not flags.writeable):
        raise CacheError(f"got {name} {array.shape} in memory that is misaligned or read-only")
    return address(array)


def _unlike(name: str, array: Array, dtype: type, shape: tuple[int | None, ...]) -> CacheError:
    wanted = ", ".join("any" if extent is None else str(extent) for extent in shape)
    return CacheError(
        f"got {name} {array.dtype} {array.shape}, expected {np.dtype(dtype)} [{wanted}]"
    )


def strided(tokens: Array) -> Strided:
    """Tokens [B, Hkv, n, D] of a dtype in ELEMENTS, the last axis contiguous."""
    size = tokens.itemsize
    if tokens.ndim != 4 or not tokens.flags.aligned:
        raise CacheError(f"got tokens {tokens.shape}, expected aligned [B, Hkv, tokens, D]")
    batch, head, token, last = tokens.strides
    if last != size:
        raise CacheError(f"got tokens {tokens.shape} whose last axis is not contiguous")
    element = ELEMENTS.get(tokens.dtype)
    if element is None:
        names = ", ".join(map(str, ELEMENTS))
        raise CacheError(f"got tokens of {tokens.dtype}, expected one of {names}")
    data = tokens.__array_interface__["data"][0]
    return Strided(data, batch // size, head // size, token // size, element)
