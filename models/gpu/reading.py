"""Tensors' rows from their file into memory of a GPU's, some at a time, by plain reads.

A piece is read once, into a buffer that stays in a core's cache, and from there put where it
belongs: nothing is mapped, and no more than a few pieces is ever there twice.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from models.gguf.checks import are_finite, not_finite
from models.gguf.tensor import Bytes, Tensor

PutRows = Callable[[int, Bytes], None]
"""Takes uint8 [count, row bytes], the rows from one on."""

_PIECE = 1 << 20  # bytes
_MOST_THREADS = 8


def read_rows(tensors: Sequence[Tensor], put: PutRows) -> None:
    """Rows of tensors of one shape of row, one behind the other, in any order of pieces.

    put: called by several threads at once. Raises `GGUFError` where the file is shorter
    than it was, or, naming the tensor, a weight is not finite.
    """
    pieces = list(_pieces(tensors))

    def piece(of: tuple[Tensor, int, int, int]) -> None:
        tensor, start, count, first = of
        rows = np.empty((count, tensor.data.shape[1]), np.uint8)
        tensor.read(rows, start)
        if not are_finite(tensor.type, rows):
            raise not_finite(tensor)
        put(first, rows)

    with ThreadPoolExecutor(min(len(pieces), os.cpu_count() or 1, _MOST_THREADS)) as pool:
        for _ in pool.map(piece, pieces):
            pass


def _pieces(tensors: Sequence[Tensor]) -> Iterator[tuple[Tensor, int, int, int]]:
    """A tensor, its row to begin with, how many, and the number of the first among all."""
    first = 0
    for tensor in tensors:
        step = max(1, _PIECE // tensor.data.shape[1])
        for start in range(0, tensor.rows, step):
            yield tensor, start, min(step, tensor.rows - start), first + start
        first += tensor.rows
