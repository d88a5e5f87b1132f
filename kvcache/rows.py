"""A batch of sequences of different lengths: one cache per row, side by side.

Prompts of unequal length come padded on the left. Padding never reaches a row's
cache, so each row has its own sinks, its own migrations and its own window.
"""

from collections.abc import Sequence
from copy import deepcopy

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


class RowsKVCache:
    """One layer of a batch. Positions count padding too; only distances matter to RoPE.

    caches: of one sequence each, empty.
    left_padding: leading padding tokens of each row.
    """

    def __init__(self, caches: Sequence[TwoTierKVCache], left_padding: Sequence[int]) -> None:
        if not isinstance(caches, Sequence):
            raise refused("caches", caches, "a list of TwoTierKVCache")
        padding = integers("left_padding", left_padding)
        if len(caches) != len(padding) or not caches:
            raise CacheError(
                f"got {len(caches)} rows and {len(padding)} paddings, expected as many of each"
            )
        self.rows = [instance("caches", each, TwoTierKVCache) for each in caches]
        self.offset = 0
        self.left_padding = tuple(padding)

    def __repr__(self) -> str:
        return f"RowsKVCache({len(self.rows)} rows, {self.stats()})"

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
        skips = [min(max(0, each - self.offset), k.shape[2]) for each in self.left_padding]
        parts = [
            tuple(x[at : at + 1, :, skip:] for x in (q, k, v)) for at, skip in enumerate(skips)
        ]
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
        self.offset += k.shape[2]
        return mx.concatenate(
            [
                mx.pad(out, [(0, 0), (0, 0), (skip, 0), (0, 0)]) if skip else out
                for out, skip in zip(outputs, skips, strict=True)
            ],
            axis=0,
        )

    # -- tokens that a network's own kernel appends, see `TwoTierKVCache` --

    def steps(self, shape: tuple[int, int, int], length: int) -> list[CpuStep]:
        """`length` new tokens of shape [B, Hkv, D]; empty too where some are padding."""
        batch, heads, dim = shape
        if batch != len(self.rows) or max(self.left_padding) > self.offset:
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
        self.offset += steps[0].sight.new

    def stats(self) -> CacheStats:
        """Tokens and bytes of all rows together."""
        return sum_rows(cache.stats() for cache in self.rows)

    def filter(self, rows: Sequence[int]) -> None:
        """Keep only the given rows; one that comes again is copied, as its tokens will differ.

        Raises CacheError for rows that there are not.
        """
        kept = checked_rows(rows, len(self.rows))
        self.rows = [
            deepcopy(self.rows[at]) if at in kept[:count] else self.rows[at]
            for count, at in enumerate(kept)
        ]
        self.left_padding = tuple(self.left_padding[at] for at in kept)

    def extract(self, row: int) -> TwoTierKVCache:
        """The cache of one row. Raises CacheError for a row that there is not."""
        return self.rows[integer("row", row, most=len(self.rows) - 1)]

    def pending(self) -> list[mx.array]:
        """Arrays to evaluate before the next step."""
        return [array for cache in self.rows for array in cache.pending()]
