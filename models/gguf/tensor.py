"""A tensor as it lies in a file: its bytes, and what they are called.

Does not know what the bytes mean (see `decode`), nor what the tensor is for.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Self

import numpy as np
import numpy.typing as npt

from models.gguf.tensor_types import TensorType

Bytes = npt.NDArray[np.uint8]
# Fills uint8 [rows, row bytes] with the rows from one on.
ReadRows = Callable[[Bytes, int], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Tensor:
    """shape: [rows, columns] or [size], in numpy's order.

    data: uint8 [rows, row bytes], read-only; of a file's tensor, in the mapped file.
    by_reading: what `read` does instead of copying from `data`; None: that.
    """

    name: str
    type: TensorType
    shape: tuple[int, ...]
    data: Bytes
    by_reading: ReadRows | None = None

    @property
    def rows(self) -> int:
        """All leading axes together; 1 for a vector."""
        return prod(self.shape[:-1])

    @property
    def columns(self) -> int:
        """Weights in a row: the last axis, the one a product sums over."""
        return self.shape[-1]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.data.nbytes

    def read(self, out: Bytes, start: int = 0) -> None:
        """Copy rows into `out`, uint8 [count, row bytes] in C order, from row `start` on.

        Of a file's tensor by a plain read, without the mapping. Raises `GGUFError` where
        the file ends before them.
        """
        if self.by_reading is not None:
            self.by_reading(out, start)
        else:
            out[...] = self.data[start : start + len(out)]

    def in_one_piece(self) -> Self:
        """The same with its rows one behind the other: itself, or a copy where others' bytes lie
        between them."""
        if self.data.flags.c_contiguous:
            return self
        own = np.empty(self.data.shape, np.uint8)
        self.read(own)
        return replace(self, data=own, by_reading=None)
