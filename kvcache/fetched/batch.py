"""A batch of rows of unequal lengths as mlx-lm's networks meet it: alike in shape, padded.

Of the tokens that come, a row's own lie in a span. What is fetched of a row stands at the right of
as many columns as the longest row has, with zeros before it, and a mask shows each row its own.
Knows no cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx

from kvcache.fetched.marks import Fetch, StandIn, fetch_of, looked_at
from kvcache.reference import Mask
from kvcache.snapshot import Tokens
from kvcache.tiers.ledger import Ledger


class Span(NamedTuple):
    """A row's own tokens [start, stop) of those that all rows are given; the others are padding."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        """How many they are."""
        return self.stop - self.start


@dataclass(frozen=True, kw_only=True)
class Batch:
    """`length` new tokens of each row, of which its own are in its span.

    ledgers: of the rows, before them.
    """

    ledgers: tuple[Ledger, ...]
    spans: tuple[Span, ...]
    length: int

    @property
    def is_padded(self) -> bool:
        """Whether some are padding."""
        return any(span.length < self.length for span in self.spans)

    def own(self, x: mx.array) -> list[mx.array]:
        """Each row's own [1, H, own, D] of x [B, H, L, D]."""
        return [x[row : row + 1, :, span.start : span.stop] for row, span in enumerate(self.spans)]

    def joined(self, rows: Sequence[mx.array]) -> mx.array:
        """Rows [1, ..., own, D] as one [B, ..., L, D], with zeros where padding is."""
        return mx.concatenate(
            [self._padded(row, span) for row, span in zip(rows, self.spans, strict=True)]
        )

    def mask(self, rows: Sequence[mx.array | None], window: int | None) -> "BatchMask":
        """[B, 1, L, columns] of each row's mask [own, columns], if it has tokens of its own.

        window: tokens that they show at most.
        """
        columns = max(0 if mask is None else mask.shape[1] for mask in rows)
        whole = mx.stack(
            [self._among(*each, columns) for each in zip(rows, self.spans, strict=True)]
        )
        made = BatchMask(whole[:, None])
        made.batch, made.is_rule = (
            self,
            window is None
            or all(
                (ledger.sizes.window or ledger.sizes.max_tokens) <= window
                for ledger in self.ledgers
            ),
        )
        return made

    def fetched(self, rows: Sequence[Tokens[Any]], new: Tokens[mx.array]) -> Tokens[Any]:
        """What each row's cache gave for its own of the new tokens, as one that leads to all."""
        decode = partial(_looked_at, rows)
        fetch = Fetch(partial(self._attend, rows, new), look=partial(_look, rows), decode=decode)
        if not any(isinstance(each.keys, StandIn) for each in rows):
            return fetch.marked(side_by_side(rows))
        batch, heads, _, dim = new.keys.shape
        columns = max(each.length for each in rows)
        return fetch.standing_in((batch, heads, columns, dim), (new.keys.dtype, new.values.dtype))

    def _attend(
        self,
        rows: Sequence[Tokens[Any]],
        new: Tokens[mx.array],
        q: mx.array,
        scale: float,
        mask: Mask,
    ) -> mx.array | None:
        """Each row by its own tiers; None under a mask of a caller's own."""
        if q.shape[2] != self.length or not self._is_rule(mask):
            return None
        if any(isinstance(each.keys, StandIn) for each in rows):
            mx.eval(q, *new)  # at once: each row would wait for its own
        outputs = list[mx.array]()
        for own, each in zip(self.own(q), rows, strict=True):
            fetch = fetch_of(*each)
            out = own if fetch is None else fetch.attend(own, scale, "causal")
            if out is None:
                return None
            outputs.append(out)
        return self.joined(outputs)

    def _is_rule(self, mask: Mask) -> bool:
        if isinstance(mask, BatchMask):
            return mask.is_rule and mask.batch == self
        return (mask is None and self.length == 1) or isinstance(mask, str)

    def _padded(self, row: mx.array, span: Span) -> mx.array:
        if span.length == self.length:
            return row
        around = [(0, 0)] * (row.ndim - 2)
        return mx.pad(row, [*around, (span.start, self.length - span.stop), (0, 0)])

    def _among(self, mask: mx.array | None, span: Span, columns: int) -> mx.array:
        """A row's mask as [L, columns]. Padding sees all: to see nothing gives no number."""
        if mask is None:
            return mx.ones((self.length, columns), mx.bool_)
        shown = mx.pad(mask, [(0, 0), (columns - mask.shape[1], 0)])
        if span.length == self.length:
            return shown
        before, after = (
            mx.ones((count, columns), mx.bool_) for count in (span.start, self.length - span.stop)
        )
        return mx.concatenate([before, shown, after])


class BatchMask(mx.array):
    """What the queries of a batch see. is_rule: what each row's ledger says, and no less."""

    batch: Batch
    is_rule: bool


def side_by_side(rows: Sequence[Tokens[mx.array]]) -> Tokens[mx.array]:
    """Fetched rows [1, H, columns, D] as one batch, with zeros before those that have fewer."""
    most = max(tokens.length for tokens in rows)

    def aligned(every: Sequence[mx.array]) -> mx.array:
        return mx.concatenate(
            [mx.pad(x, [(0, 0), (0, 0), (most - x.shape[2], 0), (0, 0)]) for x in every]
        )

    return Tokens(aligned([each.keys for each in rows]), aligned([each.values for each in rows]))


def _look(rows: Sequence[Tokens[Any]]) -> None:
    for each in rows:
        fetch = fetch_of(*each)
        if fetch is not None:
            fetch.look()


def _looked_at(rows: Sequence[Tokens[Any]]) -> Tokens[mx.array]:
    return side_by_side([Tokens(*map(looked_at, each)) for each in rows])
