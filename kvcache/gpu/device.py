"""How much work this machine's GPU takes at a time.

What MLX and the driver tell: on Metal a kind of chip, on CUDA the number of multiprocessors.
"""

import ctypes
from functools import cache

import mlx.core as mx

# By the last letter of the architecture, as MLX's own attention takes it: base chips and Pro, Max,
# Ultra. Four to five for each core of the largest of a kind (20, 40, 80); with 128 registers a
# thread, a core has room for three.
_OF_METAL = {"g": 96, "s": 192, "d": 384}
_PER_MULTIPROCESSOR = 4  # with 128 registers a thread
_MULTIPROCESSORS = 16  # CUDA's CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT


def threadgroups_of(architecture: str) -> int:
    """How many threadgroups keep a Metal GPU busy, by MLX's name of it, such as applegpu_g16s."""
    return _OF_METAL.get(architecture[-1:], _OF_METAL["g"])


def threadgroups_on(multiprocessors: int) -> int:
    """The same of a CUDA GPU."""
    return _PER_MULTIPROCESSOR * multiprocessors


@cache
def threadgroups_here() -> int:
    """The same of this machine's GPU; as a base chip's where nothing is told."""
    if mx.cuda.is_available() and (count := _multiprocessors()):
        return threadgroups_on(count)
    return threadgroups_of(str(mx.device_info().get("architecture", "")))


def _multiprocessors() -> int | None:
    """Of the first CUDA device, by the driver, as MLX does not tell; None if it does not either."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    first, count = ctypes.c_int(), ctypes.c_int()
    failed = (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(first), 0)
        or driver.cuDeviceGetAttribute(ctypes.byref(count), _MULTIPROCESSORS, first)
    )
    return None if failed else count.value
