"""A matrix's blocks in device memory: the file's bytes once, the parts of blocks apart.

```
file     block 0                    block 1               ...
         | d | scales | codes       | d | scales | codes
memory   | codes 0 | codes 1 | ...      | scales 0 | scales 1 | ...      | d 0 | d 1 | ...
           a plane of each part, 16 bytes of each lane side by side
```

So every part begins where loads of a GPU want it, whatever a block's size, and a simdgroup's
loads touch lines that it needs all of. This module knows the parts' sizes, not what a bit of them
means: the headers in `kernels/` draw each type's codes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from itertools import accumulate
from pathlib import Path

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from models.gguf.grids import grid_of
from models.gguf.tensor_types import TensorType

# Of the texts of kernels over blocks.
KERNELS = Path(__file__).parent / "kernels"

PIECE = 1 << 18  # bytes that are regrouped at a time, so that the parts find them in the cache


class Plane(IntEnum):
    """In the order in which they lie in memory."""

    CODES = 0
    HIGH = 1  # bits of codes above those in CODES
    SIGNS = 2
    SCALES = 3  # of parts of a block
    WHOLE = 4  # of whole blocks


_CODES, _HIGH, _SIGNS, _SCALES, _WHOLE = Plane
# The parts of a block as they follow each other in the file, with their bytes.
_PARTS: dict[TensorType, tuple[tuple[Plane, int], ...]] = {
    TensorType.Q4_0: ((_WHOLE, 2), (_CODES, 16)),
    TensorType.Q4_1: ((_WHOLE, 4), (_CODES, 16)),
    TensorType.Q5_0: ((_WHOLE, 2), (_HIGH, 4), (_CODES, 16)),
    TensorType.Q5_1: ((_WHOLE, 4), (_HIGH, 4), (_CODES, 16)),
    TensorType.Q8_0: ((_WHOLE, 2), (_CODES, 32)),
    TensorType.Q2_K: ((_SCALES, 16), (_CODES, 64), (_WHOLE, 4)),
    TensorType.Q3_K: ((_HIGH, 32), (_CODES, 64), (_SCALES, 12), (_WHOLE, 2)),
    TensorType.Q4_K: ((_SCALES, 16), (_CODES, 128)),
    TensorType.Q5_K: ((_SCALES, 16), (_HIGH, 32), (_CODES, 128)),
    TensorType.Q6_K: ((_CODES, 128), (_HIGH, 64), (_SCALES, 16), (_WHOLE, 2)),
    TensorType.IQ4_NL: ((_WHOLE, 2), (_CODES, 16)),
    TensorType.MXFP4: ((_WHOLE, 1), (_CODES, 16)),
    TensorType.IQ4_XS: ((_SCALES, 8), (_CODES, 128)),
    TensorType.IQ2_XXS: ((_WHOLE, 2), (_CODES, 64)),
    TensorType.IQ2_XS: ((_WHOLE, 2), (_CODES, 64), (_SCALES, 8)),
    TensorType.IQ2_S: ((_WHOLE, 2), (_CODES, 32), (_SIGNS, 32), (_HIGH, 8), (_SCALES, 8)),
    TensorType.IQ3_XXS: ((_WHOLE, 2), (_CODES, 64), (_SIGNS, 32)),
    TensorType.IQ3_S: ((_WHOLE, 2), (_CODES, 64), (_HIGH, 8), (_SIGNS, 32), (_SCALES, 4)),
}
# The header that draws a type's codes.
_BY_HEADER = {
    "blocks_32.h": (
        *(TensorType.Q4_0, TensorType.Q4_1, TensorType.Q5_0, TensorType.Q5_1, TensorType.Q8_0),
    ),
    "blocks_256.h": (TensorType.Q4_K, TensorType.Q5_K, TensorType.Q6_K),
    "two_bits.h": (TensorType.Q2_K, TensorType.Q3_K),
    "levels.h": (TensorType.IQ4_NL, TensorType.IQ4_XS, TensorType.MXFP4),
    "grids.h": (
        *(TensorType.IQ2_XXS, TensorType.IQ2_XS, TensorType.IQ2_S),
        *(TensorType.IQ3_XXS, TensorType.IQ3_S),
    ),
    "floats.h": (TensorType.F32, TensorType.F16, TensorType.BF16),
}
_ALIGNMENT = 16  # bytes, of planes and of the rows of unencoded numbers
_EVEN = 8  # columns of unencoded numbers: rows of 16-bit activations are aligned with them


class Argument(IntEnum):
    """Index of each number of a matrix among a kernel's arguments; kernels see ARG_<name>."""

    ROWS = 0
    COLUMNS = 1  # as held
    BLOCKS = 2  # of a row
    FIRST_BLOCK = 3  # of the first row
    HIGH = 4  # where each plane behind the codes begins, and the grid, in words
    SIGNS = 5
    SCALES = 6
    WHOLE = 7
    GRID = 8
    INPUTS = 9  # rows of x, or rows that are looked up
    FACTOR = 10  # of rows that are looked up; the bits of a float32


MACROS: tuple[tuple[str, str | int], ...] = tuple(
    (f"ARG_{argument.name}", argument.value) for argument in Argument
)


def headers_of(kind: TensorType) -> tuple[str, ...]:
    """The headers that a kernel over blocks of a type needs: no more, as MLX reads them all."""
    own = next(header for header, kinds in _BY_HEADER.items() if kind in kinds)
    return ("packing.h", "blocks.h", own)


@dataclass(frozen=True, kw_only=True, eq=False)
class Blocks:
    """Some rows of a matrix that is held in `words`, uint32.

    columns: as in the file. row, rows: of the `all_rows` that are held.
    """

    type: TensorType
    columns: int
    all_rows: int
    words: mx.array
    row: int
    rows: int

    @classmethod
    def empty(cls, kind: TensorType, *, rows: int, columns: int) -> "Blocks":
        """Room for `rows` rows, to be written."""
        made = cls(type=kind, columns=columns, all_rows=rows, words=mx.zeros(1), row=0, rows=rows)
        found = grid_of(kind)
        grid = np.zeros(0, np.uint16) if found is None else found.words
        words = mx.zeros((made._ends[-1] + grid.nbytes) // 4, mx.uint32)
        mx.eval(words)
        made = replace(made, words=words)
        made._memory[made._ends[-1] :] = grid.view(np.uint8)
        return made

    def part(self, start: int, stop: int) -> "Blocks":
        """Rows [start, stop) of these, in the same memory."""
        return replace(self, row=self.row + start, rows=stop - start)

    def write(self, start: int, data: npt.NDArray[np.uint8]) -> None:
        """Rows from `start` on, as they lie in the file: [rows, row bytes], in C order.

        Nothing may be computing with them.
        """
        memory = self._memory
        first = self.row + start
        if self.type not in _PARTS:
            rows = memory.reshape(self.all_rows, self.row_bytes)
            rows[first : first + len(data), : data.shape[1]] = data
            return
        in_row = self.blocks_in_row
        blocks = data.reshape(-1).view(self._block)
        step = max(1, PIECE // self._block.itemsize)
        planes = [(name, plane[first * in_row :]) for name, plane in self._planes(memory)]
        for begin in range(0, len(blocks), step):
            piece = blocks[begin : begin + step]
            for name, plane in planes:
                plane[begin : begin + len(piece)] = piece[name]

    @property
    def held_columns(self) -> int:
        """Columns with those of zeros behind rows of unencoded numbers."""
        return self.blocks_in_row * self._block_columns

    @property
    def blocks_in_row(self) -> int:
        """Blocks, or, of unencoded numbers, 16 bytes of them."""
        even = 1 if self.type in _PARTS else _EVEN
        return -(-self.columns // even) * even // self._block_columns

    @property
    def row_bytes(self) -> int:
        """As held; but for what aligns them, those of the file."""
        return self.blocks_in_row * self._block.itemsize

    @property
    def nbytes(self) -> int:
        """Of these rows."""
        return self.rows * self.row_bytes

    def arguments(self, inputs: int = 0, factor: int = 0) -> mx.array:
        """int32: the number for each `Argument`; inputs, factor: the last ones."""
        in_row = self.blocks_in_row
        starts = (at // 4 for at in self._ends[1:])
        matrix = (self.rows, self.held_columns, in_row, self.row * in_row)
        return mx.array((*matrix, *starts, inputs, factor), mx.int32)

    @property
    def _memory(self) -> npt.NDArray[np.uint8]:
        """Of MLX's array, to write to."""
        return np.array(self.words, copy=False).view(np.uint8)

    @property
    def _block(self) -> np.dtype[np.void]:
        """Of a block in the file, its parts by the planes' names."""
        parts = _PARTS.get(self.type, ((_CODES, _ALIGNMENT),))
        return np.dtype([(plane.name, f"V{size}") for plane, size in parts])

    @property
    def _block_columns(self) -> int:
        if self.type in _PARTS:
            return self.type.block_size
        return _ALIGNMENT // self.type.block_bytes

    @property
    def _ends(self) -> tuple[int, ...]:
        """Where each plane begins, and, last, where the grid does, in bytes."""
        sizes = (self._plane_bytes(plane) for plane in Plane)
        padded = (-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes)
        return tuple(accumulate(padded, initial=0))

    def _plane_bytes(self, plane: Plane) -> int:
        names = self._block.names or ()
        each = self._block[plane.name].itemsize if plane.name in names else 0
        return self.all_rows * self.blocks_in_row * each

    def _planes(self, memory: npt.NDArray[np.uint8]) -> Iterator[tuple[str, npt.NDArray[np.void]]]:
        """Each plane of the memory as the parts of all blocks."""
        for name in self._block.names or ():
            plane = Plane[name]
            start, size = self._ends[plane], self._plane_bytes(plane)
            part = self._block[name]
            yield name, memory[start : start + size].view(part)
