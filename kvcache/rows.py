"""A batch of sequences of different lengths: one cache per row, side by side.

Each row has its own sinks, its own migrations, its own window and its own positions, and holds
what it would hold alone; rows come and go. Where prompts are padded to one length, on either side,
padding never reaches a row's cache. mlx-lm's generators take it for a batch of its own kind.
"""

from collections.abc import Iterable, Sequence
from copy import copy, deepcopy
from dataclasses import replace
from typing import Any, Self

import mlx.core as mx

from kvcache.checks import check_queries, check_tokens, checked_rows
from kvcache.config import Backend
from kvcache.errors import CacheError
from kvcache.fetched.batch import Batch, Span, side_by_side
from kvcache.given import array, instance, integer, integers, number, refused
from kvcache.native.structs import TierMemory
from kvcache.reference import Mask, check_mask
from kvcache.snapshot import Tokens
from kvcache.stats import CacheStats, sum_rows
from kvcache.tiers.cpu_step import CpuStep
from kvcache.two_tier import TwoTierKVCache


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
        """Rows that go on from what these hold, which stay as they are.

        A cache of a shared budget is a row itself: a chat is one of the budget once.
        """
        return cls([_copy(instance("caches", each, TwoTierKVCache)) for each in caches])

    def __deepcopy__(self, _memo: dict[int, Any]) -> Self:
        made = copy(self)
        made.rows = [_copy(row) for row in self.rows]
        return made

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

    def batch(self, length: int) -> Batch:
        """The next `length` tokens, and which of them are whose."""
        coming = self._coming or [length] * len(self.rows)
        starts = [min(ahead, length) for ahead in self._ahead]
        spans = (
            Span(start, min(length, start + own)) for start, own in zip(starts, coming, strict=True)
        )
        ledgers = tuple(row.ledger for row in self.rows)
        return Batch(ledgers=ledgers, spans=tuple(spans), length=length)

    def passed(self, batch: Batch) -> None:
        """They came, and each row has taken its own."""
        self._ahead = [max(0, ahead - batch.length) for ahead in self._ahead]
        if self._coming is not None:
            pairs = zip(self._coming, batch.spans, strict=True)
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
        self._check_rows(q, k, v)
        check_tokens(k, v, (None, None, None))
        check_queries(q, (k.shape[0], k.shape[1], k.shape[3]), k.shape[2])
        batch = self.batch(k.shape[2])
        parts = list(zip(*map(batch.own, (q, k, v)), strict=True))
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
        self.passed(batch)
        return batch.joined(outputs)

    # -- mlx-lm's networks, see `FetchingCache` --

    def update_and_fetch(self, k: mx.array, v: mx.array) -> tuple[Any, Any]:
        """Append; returns what each row's cache gives, [B, Hkv, columns, D].

        A row that has fewer columns has them at the right, as the mask of `make_mask` knows. What
        a row refuses it refuses alone: those before it have appended.
        """
        k, v = array("k", k), array("v", v)
        self._check_rows(k, v)
        batch = self.batch(k.shape[2])
        fetched = [
            Tokens(*(row.update_and_fetch(*new) if new[0].shape[2] else new))
            for row, new in zip(self.rows, zip(*map(batch.own, (k, v)), strict=True), strict=True)
        ]
        self.passed(batch)
        if not TwoTierKVCache.keeps_snapshot:
            return side_by_side(fetched)
        return batch.fetched(fetched, Tokens(k, v))

    def make_mask(
        self, length: int, return_array: bool = False, window_size: int | None = None
    ) -> Mask:
        """The mask of `length` tokens about to be appended; an array is [B, 1, L, columns]."""
        batch = self.batch(integer("length", length, least=1))
        if not return_array and not batch.is_padded:
            masks = [row.make_mask(length, False, window_size) for row in self.rows]
            alike = len({row.size() for row in self.rows}) == 1
            if alike and not any(isinstance(mask, mx.array) for mask in masks):
                return masks[0]
        arrays: list[Any] = [
            row.make_mask(span.length, True, window_size) if span.length else None
            for row, span in zip(self.rows, batch.spans, strict=True)
        ]
        return batch.mask(arrays, window_size)

    # -- tokens that a network's own kernel appends, see `TwoTierKVCache` --

    def steps(self, shape: tuple[int, int, int], length: int) -> list[CpuStep]:
        """`length` new tokens of shape [B, Hkv, D]; empty too where some are padding."""
        batch, heads, dim = shape
        if batch != len(self.rows) or self.batch(length).is_padded:
            return []
        found = [step for row in self.rows for step in row.steps((1, heads, dim), length)]
        return found if len(found) == batch else []

    def lend(self, steps: Sequence[CpuStep]) -> list[TierMemory]:
        """The memory of all rows."""
        if len(steps) != len(self.rows):
            return []
        lent = [row.lent(step) for row, step in zip(self.rows, steps, strict=True)]
        return [memory for memory in lent if memory is not None]

    def commit(self, steps: Sequence[CpuStep]) -> None:
        """The tokens of the steps were written to the lent memory."""
        if self._coming is not None:  # else nothing is padding, which to find out takes time
            self.passed(self.batch(steps[0].sight.new))
        for row, step in zip(self.rows, steps, strict=True):
            row.commit([step])

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
        """A copy of one row's cache, which is cheap; of a shared budget the cache itself.

        Raises CacheError for a row that there is not.
        """
        return _copy(self.rows[integer("row", row, most=len(self.rows) - 1)])

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

    def _check_rows(self, *given: mx.array) -> None:
        """Raise CacheError for arrays that are not of these rows."""
        if any(x.ndim != 4 or len(x) != len(self.rows) for x in given):
            got = ", ".join(str(x.shape) for x in given)
            raise CacheError(f"got {got}, expected {len(self.rows)} batch rows")

    def _of_rows(self, name: str, given: Sequence[int]) -> list[int]:
        """A number for each row."""
        numbers = integers(name, given)
        if len(numbers) != len(self.rows):
            raise CacheError(f"got {name} of {len(numbers)} rows, expected {len(self.rows)}")
        return numbers

    # -- figures --

    def stats(self) -> CacheStats:
        """Tokens and bytes of all rows together; allocated ones once where rows share them."""
        added = sum_rows(cache.stats() for cache in self.rows)
        return replace(added, allocated_bytes=self.nbytes)

    @property
    def nbytes(self) -> int:
        """Bytes of the memory that all rows have written, once where rows share it."""
        return allocated_bytes(self.rows)

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


def allocated_bytes(caches: Iterable[TwoTierKVCache | RowsKVCache]) -> int:
    """Bytes of the memory that caches have written, once where several share what they hold."""
    given: object = caches
    if not isinstance(given, Iterable):
        raise refused("caches", given, "caches")
    places = dict[int, int]()
    for cache in caches:
        for row in cache.rows if isinstance(cache, RowsKVCache) else [cache]:
            places |= instance("caches", row, TwoTierKVCache).places()
    return sum(places.values())


def _copy(cache: TwoTierKVCache) -> TwoTierKVCache:
    return cache if cache.draws_on_share else deepcopy(cache)


TwoTierKVCache.merge = RowsKVCache.of
