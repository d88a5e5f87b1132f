"""A batch of sequences of different lengths: one cache per row, side by side.

Each row has its own sinks, its own migrations, its own window and its own positions, and holds
what it would hold alone; rows come and go. Where prompts are padded to one length, on either side,
padding never reaches a row's cache. mlx-lm's generators take it for a batch of its own kind.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any, NamedTuple, Self

import mlx.core as mx

from kvcache.checks import check_queries, check_tokens, checked_rows
from kvcache.config import Backend
from kvcache.errors import CacheError
from kvcache.given import array, instance, integer, integers, number, refused
from kvcache.native.structs import TierMemory
from kvcache.reference import Mask, check_mask
from kvcache.stats import CacheStats, sum_rows
from kvcache.tiers.cpu_step import CpuStep
from kvcache.two_tier import TwoTierKVCache


class Span(NamedTuple):
    """A row's own tokens [start, stop) of those that all rows are given; the others are padding."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        """How many they are."""
        return self.stop - self.start


class RowsKVCache:
    """One layer of a batch.

    caches: of one sequence each, which may hold tokens already.
    left_padding: of each row, tokens of padding that come before its own; none: no row has any.
    """

    def __init__(
        self, caches: Sequence[TwoTierKVCache], left_padding: Sequence[int] | None = None
    ) -> None:
        if not isinstance(caches, Sequence):
            raise refused("caches", caches, "a list of TwoTierKVCache")
        padding = [0] * len(caches)
        if left_padding is not None:
            padding = integers("left_padding", left_padding)
        if len(caches) != len(padding) or not caches:
            raise CacheError(
                f"got {len(caches)} rows and {len(padding)} paddings, expected as many of each"
            )
        self.rows = [instance("caches", each, TwoTierKVCache) for each in caches]
        self._ahead = padding
        # Of each row, how many of the tokens behind `_ahead` are its own; None: all.
        self._coming: list[int] | None = None

    @classmethod
    def of(cls, caches: Sequence[TwoTierKVCache]) -> Self:
        """Rows that go on from what these hold, which stay as they are."""
        return cls([deepcopy(each) for each in caches])

    def __repr__(self) -> str:
        return f"RowsKVCache({len(self.rows)} rows, {self.stats()})"

    @property
    def positions(self) -> tuple[int, ...]:
        """The position of each row's next token; before 0 while padding is ahead of it."""
        return tuple(row.offset - ahead for row, ahead in zip(self.rows, self._ahead, strict=True))

    @property
    def offset(self) -> Any:
        """The same as mlx-lm's ropes take it: a number where all are alike, or an array [B]."""
        positions = self.positions
        return positions[0] if len(set(positions)) == 1 else mx.array(positions, mx.int32)

    def spans(self, length: int) -> tuple[Span, ...]:
        """Each row's own of the next `length` tokens."""
        coming = self._coming or [length] * len(self.rows)
        starts = [min(ahead, length) for ahead in self._ahead]
        return tuple(
            Span(start, min(length, start + own)) for start, own in zip(starts, coming, strict=True)
        )

    def passed(self, spans: Sequence[Span], length: int) -> None:
        """`length` tokens came, of which each row has taken its own."""
        self._ahead = [ahead - min(ahead, length) for ahead in self._ahead]
        if self._coming is not None:
            pairs = zip(self._coming, spans, strict=True)
            self._coming = [own - span.length for own, span in pairs]

    def attend(
        self, q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: Mask = "causal"
    ) -> mx.array:
        """Each row's `TwoTierKVCache.attend`; padding queries give zeros.

        q [B, Hq, L, D]; k, v [B, Hkv, L, D]. Raises CacheError for a mask array,
        another B, or what any row refuses; no row has changed then.
        """
        q, k, v = array("q", q), array("k", k), array("v", v)
        if mask is not None and not isinstance(mask, str):
            raise CacheError("rows of unequal length take no mask array: each row is causal")
        check_mask(mask)
        scale = number("scale", scale)
        if {(x.ndim, *x.shape[:1]) for x in (q, k, v)} != {(4, len(self.rows))}:
            got = ", ".join(str(x.shape) for x in (q, k, v))
            raise CacheError(f"got {got}, expected {len(self.rows)} batch rows")
        check_tokens(k, v, (None, None, None))
        check_queries(q, (k.shape[0], k.shape[1], k.shape[3]), k.shape[2])
        length = k.shape[2]
        spans = self.spans(length)
        parts = [tuple(part) for part in zip(*(_own(x, spans) for x in (q, k, v)), strict=True)]
        if self.rows[0].plan.backend is Backend.CPU:
            mx.eval(parts)  # at once: each row would wait for its own
        # None appends before all are checked.
        news = [
            cache.checked(keys, values)
            for cache, (_, keys, values) in zip(self.rows, parts, strict=True)
        ]
        outputs = [
            cache.attend_checked(part[0], new, scale=scale) if new.length else part[0]
            for cache, part, new in zip(self.rows, parts, news, strict=True)
        ]
        self.passed(spans, length)
        return joined_rows(outputs, spans, length)

    # -- tokens that a network's own kernel appends, see `TwoTierKVCache` --

    def steps(self, shape: tuple[int, int, int], length: int) -> list[CpuStep]:
        """`length` new tokens of shape [B, Hkv, D]; empty too where some are padding."""
        batch, heads, dim = shape
        if batch != len(self.rows) or any(each.length < length for each in self.spans(length)):
            return []
        found = [step for row in self.rows for step in row.steps((1, heads, dim), length)]
        return found if len(found) == batch else []

    def lend(self, steps: Sequence[CpuStep]) -> list[TierMemory]:
        """The memory of all rows."""
        if len(steps) != len(self.rows):
            return []
        return [
            memory
            for row, step in zip(self.rows, steps, strict=True)
            for memory in row.lend([step])
        ]

    def commit(self, steps: Sequence[CpuStep]) -> None:
        """The tokens of the steps were written to the lent memory."""
        for row, step in zip(self.rows, steps, strict=True):
            row.commit([step])
        length = steps[0].sight.new
        self.passed(self.spans(length), length)

    # -- rows that come and go --

    def filter(self, rows: Sequence[int]) -> None:
        """Keep only the given rows; one that comes again is copied, as its tokens will differ.

        Raises CacheError for rows that there are not.
        """
        kept = checked_rows(rows, len(self.rows))
        self.rows = [
            deepcopy(self.rows[at]) if at in kept[:count] else self.rows[at]
            for count, at in enumerate(kept)
        ]
        self._ahead = [self._ahead[at] for at in kept]
        if self._coming is not None:
            self._coming = [self._coming[at] for at in kept]

    def extend(self, other: "RowsKVCache") -> None:
        """Take the rows of another batch of the same layer, which is of no more use then."""
        instance("other", other, RowsKVCache)
        if self._coming is not None or other._coming is not None:
            raise CacheError("got rows amid their padding: call finalize before extend")
        self.rows = [*self.rows, *other.rows]
        self._ahead = [*self._ahead, *other._ahead]

    def extract(self, row: int) -> TwoTierKVCache:
        """A copy of one row's cache, which is cheap. Raises CacheError for a row that is not."""
        return deepcopy(self.rows[integer("row", row, most=len(self.rows) - 1)])

    def prepare(
        self,
        *,
        left_padding: Sequence[int] | None = None,
        lengths: Sequence[int] | None = None,
        right_padding: Sequence[int] | None = None,
    ) -> None:
        """Tell of prompts that are padded, before they come; `finalize` ends it.

        left_padding: of each row, tokens before its own. lengths: of each row, its own tokens,
        behind which padding follows: that much is not asked (`right_padding`, as mlx-lm gives it).
        """
        if left_padding is not None:
            more = self._of_rows("left_padding", left_padding)
            self._ahead = [a + b for a, b in zip(self._ahead, more, strict=True)]
        if lengths is not None:
            self._coming = self._of_rows("lengths", lengths)

    def finalize(self) -> None:
        """All tokens have come of which `prepare` told; what comes next are tokens of all rows."""
        self._coming = None

    def _of_rows(self, name: str, given: Sequence[int]) -> list[int]:
        """A number for each row."""
        numbers = integers(name, given)
        if len(numbers) != len(self.rows):
            raise CacheError(f"got {name} of {len(numbers)} rows, expected {len(self.rows)}")
        return numbers

    # -- figures --

    def stats(self) -> CacheStats:
        """Tokens and bytes of all rows together."""
        return sum_rows(cache.stats() for cache in self.rows)

    @property
    def nbytes(self) -> int:
        """Bytes of the allocated memory of all rows."""
        return sum(row.nbytes for row in self.rows)

    def size(self) -> int:
        """Tokens held by the row that holds most."""
        return max(row.size() for row in self.rows)

    def empty(self) -> bool:
        """Whether no row holds anything."""
        return all(row.empty() for row in self.rows)

    def is_trimmable(self) -> bool:
        """No: mlx-lm trims caches of one sequence."""
        return False

    def pending(self) -> list[mx.array]:
        """Arrays to evaluate before the next step."""
        return [array for cache in self.rows for array in cache.pending()]

    @property
    def state(self) -> list[mx.array]:
        """What mlx-lm evaluates after each step. To save a row, `extract` it."""
        return self.pending()


def _own(x: mx.array, spans: Sequence[Span]) -> Iterator[mx.array]:
    """Each row's own tokens of x [B, H, L, D]."""
    for row, span in enumerate(spans):
        yield x[row : row + 1, :, span.start : span.stop]


def joined_rows(rows: Sequence[mx.array], spans: Sequence[Span], length: int) -> mx.array:
    """Rows [1, H, own, D] as one [B, H, L, D], with zeros where padding is."""
    return mx.concatenate(
        [
            out
            if span.length == length
            else mx.pad(out, [(0, 0), (0, 0), (span.start, length - span.stop), (0, 0)])
            for out, span in zip(rows, spans, strict=True)
        ],
        axis=0,
    )


TwoTierKVCache.merge = RowsKVCache.of
