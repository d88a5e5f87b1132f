"""Where a pool keeps its pages: unencoded keys and values in one array.

    [2 * Hkv, pages * page tokens, D]
      head 0       keys     page 0 | page 1 | page 2 | ...
      ...
      head Hkv     values   page 0 | page 1 | page 2 | ...
      ...

Neighbouring pages are neighbours in memory for each head, so that a sequence
whose pages lie in a row is read without a copy; one gather collects keys and
values of any other. Who owns a page is not known here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from kvcache.config import Backend, HotDtype
from kvcache.cpu_memory import DTYPES, storable, zeros
from kvcache.native.structs import Array

# Page numbers of each batch row, oldest first; every row has the same number.
Tables = Sequence[Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class PageShape:
    """The dimensions of a pool: `pages` of `page_tokens` tokens, Hkv and D."""

    pages: int
    page_tokens: int
    kv_heads: int
    head_dim: int

    @property
    def array(self) -> tuple[int, int, int]:
        """Of the array that holds all of them."""
        return 2 * self.kv_heads, self.pages * self.page_tokens, self.head_dim

    def page_bytes(self, dtype: HotDtype) -> int:
        """Bytes of one page's keys and values."""
        return 2 * self.kv_heads * self.page_tokens * self.head_dim * dtype.mx.size


class MlxPages:
    """Pages in an MLX array, updated in place once it is donated."""

    def __init__(self, shape: PageShape, dtype: HotDtype) -> None:
        self.shape = shape
        self._array = mx.zeros(shape.array, dtype.mx)

    def write(self, spans: Sequence[range], k: mx.array, v: mx.array) -> None:
        """Put k and v [B, Hkv, L, D] at the token positions of `spans`, row after row."""
        both = mx.concatenate([k, v], axis=1)  # [B, 2*Hkv, L, D]
        flat = both.swapaxes(0, 1).reshape(both.shape[1], -1, both.shape[3])  # [2*Hkv, B*L, D]
        flat = flat.astype(self._array.dtype)
        if len(spans) == 1:
            self._array[:, spans[0].start : spans[0].stop] = flat
        else:
            self._array[:, mx.array([at for span in spans for at in span])] = flat

    def copy(self, source: int, target: int) -> None:
        """Make page `target` equal to page `source`."""
        page = self.shape.page_tokens
        tokens = self._array[:, source * page : (source + 1) * page]
        self._array[:, target * page : (target + 1) * page] = tokens

    def read(self, tables: Tables, held: int) -> tuple[mx.array, mx.array]:
        """The first `held` tokens of each row's pages: keys and values [B, Hkv, held, D]."""
        heads, dim, page = self.shape.kv_heads, self.shape.head_dim, self.shape.page_tokens
        if len(tables) == 1 and (start := first_of_run(tables[0])) is not None:
            both = self._array[None, :, start * page : start * page + held]
        else:
            pages = self._array.reshape(2 * heads, -1, page, dim)
            both = mx.take(
                pages, mx.array([list(table) for table in tables]), axis=1
            )  # [2*Hkv, B, n, page, D]
            both = both.reshape(2 * heads, len(tables), -1, dim).swapaxes(0, 1)[:, :, :held]
        return both[:, :heads], both[:, heads:]

    def prewarm(self, first: int, end: int) -> None:
        """Claim the memory of pages `first` to `end` now."""
        mx.eval(self._array)

    def pending(self) -> list[mx.array]:
        """Arrays that may still have to be evaluated."""
        return [self._array]


class CpuPages:
    """Pages in CPU memory, which the CPU kernels read in place; bfloat16 as its bits.

    The system gives memory to a page when it is first written.
    """

    def __init__(self, shape: PageShape, dtype: HotDtype) -> None:
        self.shape = shape
        self._dtype = dtype
        self._memory = zeros(shape.array, DTYPES[dtype])

    def write(self, spans: Sequence[range], k: mx.array, v: mx.array) -> None:
        """Put k and v [B, Hkv, L, D] at the token positions of `spans`, row after row."""
        heads = self.shape.kv_heads
        for into, tokens in ((self._memory[:heads], k), (self._memory[heads:], v)):
            rows = storable(tokens, self._dtype).swapaxes(0, 1)  # [Hkv, B, L, D]
            flat = rows.reshape(heads, -1, self.shape.head_dim)  # [Hkv, B*L, D]
            done = 0
            for span in spans:
                into[:, span.start : span.stop] = flat[:, done : done + len(span)]
                done += len(span)

    def copy(self, source: int, target: int) -> None:
        """Make page `target` equal to page `source`."""
        page = self.shape.page_tokens
        tokens = self._memory[:, source * page : (source + 1) * page]
        self._memory[:, target * page : (target + 1) * page] = tokens

    def read(self, tables: Tables, held: int) -> tuple[mx.array, mx.array]:
        """The first `held` tokens of each row's pages: keys and values [B, Hkv, held, D]."""
        rows = []
        for table in tables:
            keys, values, start = self.row(table)
            rows.append([tokens[0, :, start : start + held] for tokens in (keys, values)])
        both = mx.array(np.array(rows))  # [B, 2, Hkv, held, D]
        both = both.view(mx.bfloat16) if self._dtype is HotDtype.BF16 else both
        return both[:, 0], both[:, 1]

    def row(self, table: Sequence[int]) -> tuple[Array, Array, int]:
        """One row for the CPU kernels: keys and values [1, Hkv, tokens, D], and where it begins.

        Pages in a row are the pool's own memory; others are copied together.
        """
        heads, dim, page = self.shape.kv_heads, self.shape.head_dim, self.shape.page_tokens
        start = first_of_run(table)
        if start is not None:
            return self._memory[None, :heads], self._memory[None, heads:], start * page
        pages = self._memory.reshape(2 * heads, -1, page * dim)
        # Indexing would put the pages first in memory; take keeps the heads there.
        both = np.take(pages, table, axis=1).reshape(1, 2, heads, -1, dim)
        return both[:, 0], both[:, 1], 0

    def prewarm(self, first: int, end: int) -> None:
        """Claim the memory of pages `first` to `end` now."""
        page = self.shape.page_tokens
        self._memory[:, first * page : end * page] = 0

    def pending(self) -> list[mx.array]:
        """Arrays that may still have to be evaluated."""
        return []


def make_pages(shape: PageShape, dtype: HotDtype, backend: Backend) -> MlxPages | CpuPages:
    """Empty pages of the kind that a resolved backend works on."""
    kind = CpuPages if backend is Backend.CPU else MlxPages
    return kind(shape, dtype)


def first_of_run(table: Sequence[int]) -> int | None:
    """The first page, if all pages follow one another."""
    if list(table) != list(range(table[0], table[0] + len(table))):
        return None
    return table[0]
