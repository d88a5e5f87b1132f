"""Memory that the CPU kernels read and write in place, and MLX arrays as it takes them.

bfloat16, which numpy has not, is kept as its 16 bits.
"""

from math import prod
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from kvcache.config import HotDtype
from kvcache.errors import CacheError

DTYPES = {HotDtype.F16: np.float16, HotDtype.BF16: np.uint16, HotDtype.F32: np.float32}
_LINE = (
    64  # bytes: a vector that lies across two lines of the processor's cache takes twice the time
)


def zeros(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Memory that is taken as it is touched, from a line of the cache on.

    Raises CacheError where the system gives none.
    """
    kind = np.dtype(dtype)
    size = prod(shape) * kind.itemsize
    try:
        memory = np.zeros(size + _LINE, np.uint8)
    except (MemoryError, ValueError) as error:  # ValueError: more than can be addressed
        raise CacheError(
            f"the system has no memory for a cache of this size: {error}; give a smaller window, "
            "hot tier or block"
        ) from error
    start = -memory.__array_interface__["data"][0] % _LINE
    return memory[start : start + size].view(kind).reshape(shape)


def as_numpy(tokens: mx.array) -> npt.NDArray[Any]:
    """An evaluated view; bfloat16 is widened to float32."""
    return np.asarray(tokens.astype(mx.float32) if tokens.dtype == mx.bfloat16 else tokens)


def storable(tokens: mx.array, dtype: HotDtype) -> npt.NDArray[Any]:
    """As it lies in memory of `dtype`, one channel beside the other.

    What is too large for it becomes infinite.
    """
    if dtype is HotDtype.BF16:
        found = np.asarray(tokens.astype(mx.bfloat16).view(mx.uint16))
    else:
        with np.errstate(over="ignore"):
            found = as_numpy(tokens).astype(DTYPES[dtype], copy=False)
    # Channels of a broadcast array may be one number.
    return found if found.strides[-1] == found.itemsize else np.ascontiguousarray(found)
