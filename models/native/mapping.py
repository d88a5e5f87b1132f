"""A file in memory, mapped to be read by kernels, and what becomes of bytes that are gone.

A file that is cut while it is mapped, or a disk that fails, would end the process by a signal
(SIGBUS) in whatever thread reads such a page, our own or not. The kernels' handler puts zeros in
the place of the page and of all behind it and marks the mapping: no call fails, and who has
called asks `is_damaged` before he believes what came out. Once damaged, always damaged. What was
cut off within the last page left is zeros without a signal, so that the file's size tells, not
the mark.

Faults at other addresses go to the handler that was there before ours, such as that of Python's
`faulthandler`, and then to the system. One that is enabled later is taken over at the next
`is_damaged`. A thread that blocks SIGBUS is beyond this, as the system ends its process at once.
On macOS the calls are the same ones, and pages behind the end of a file raise the same signal by
Apple's documentation; it has not been tried there.

Knows neither what is in the file nor what is computed.
"""

import mmap
import weakref
from ctypes import CDLL, c_int64, c_void_p

import numpy as np

from kvcache.native.structs import Bytes


class Mapping:
    """The first `size` bytes of a file. Made by `Kernels.map`.

    It ends with the last array over it; the file may be closed before.
    """

    def __init__(self, compiled: CDLL, file: int, size: int) -> None:
        self._memory = mmap.mmap(file, size, access=mmap.ACCESS_READ)
        self._c, held = compiled, np.frombuffer(self._memory, np.uint8)
        # What numpy asks for where it makes an array of an object, which the array then holds.
        self.__array_interface__ = held.__array_interface__
        where = held.__array_interface__["data"][0]
        compiled.network_guard.restype = c_void_p
        self._guard = c_void_p(compiled.network_guard(c_void_p(where), c_int64(size)))
        # Before the memory is unmapped, when others may get its addresses. Not when the process
        # ends: kernels may still run then.
        weakref.finalize(self, compiled.network_forget, self._guard).atexit = False

    @property
    def data(self) -> Bytes:
        """The bytes [size], read-only."""
        return np.asarray(self)

    @property
    def is_damaged(self) -> bool:
        """Whether bytes of it could not be had, so that zeros were read instead."""
        return bool(self._c.network_is_damaged(self._guard))
