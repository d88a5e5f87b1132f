"""A batch of sequences of different lengths: one cache per row, side by side.

Prompts of unequal length come padded on the left. Padding never reaches a row's
cache, so each row has its own sinks, its own migrations and its own window.
"""

from collections.abc import Sequence

import mlx.core as mx

from kvcache.checks import check_finite, check_queries, check_rows, check_tokens
from kvcache.config import Backend
from kvcache.errors import CacheError
from kvcache.reference import Mask
from kvcache.stats import CacheStats, sum_rows
from kvcache.two_tier import TwoTierKVCache


class RowsKVCache:
    """One layer of a batch. Positions count padding too; only distances matter to RoPE.

    caches: of one sequence each, empty.
    left_padding: leading padding tokens of each row.
    """

    def __init__(self, caches: Sequence[TwoTierKVCache], left_padding: Sequence[int]) -> None:
        if len(caches) != len(left_padding) or not caches:
            raise CacheError(
                f"got {len(caches)} rows and {len(left_padding)} paddings, expected as many of each"
            )
        self.rows = list(caches)
        self.offset = 0
        self._padding = list(left_padding)

    def attend(
        self, q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: Mask = "causal"
    ) -> mx.array:
        """Each row's `TwoTierKVCache.attend`; padding queries give zeros.

        q [B, Hq, L, D]; k, v [B, Hkv, L, D]. Raises CacheError for a mask array,
        another B, or what any row refuses; no row has changed then.
        """
        if isinstance(mask, mx.array):
            raise CacheError("rows of unequal length take no mask array: each row is causal")
        if {x.shape[0] for x in (q, k, v)} != {len(self.rows)}:
            got = ", ".join(str(x.shape) for x in (q, k, v))
            raise CacheError(f"got {got}, expected {len(self.rows)} batch rows")
        check_tokens(k, v, (None, None, None))
        check_queries(q, (k.shape[0], k.shape[1], k.shape[3]), k.shape[2])
        skips = [min(max(0, each - self.offset), k.shape[2]) for each in self._padding]
        parts = [
            tuple(x[at : at + 1, :, skip:] for x in (q, k, v)) for at, skip in enumerate(skips)
        ]
        if self._on_cpu:
            mx.eval(parts)  # at once: each row would wait for its own
        self._check_finite([part[1:] for part in parts] if any(skips) else [(k, v)])
        outputs = []
        for cache, (queries, keys, values) in zip(self.rows, parts, strict=True):
            if queries.shape[2]:
                outputs.append(cache.attend(queries, keys, values, scale=scale))
            else:
                outputs.append(queries)
        self.offset += k.shape[2]
        return mx.concatenate(
            [
                mx.pad(out, [(0, 0), (0, 0), (skip, 0), (0, 0)]) if skip else out
                for out, skip in zip(outputs, skips, strict=True)
            ],
            axis=0,
        )

    @property
    def _on_cpu(self) -> bool:
        return self.rows[0].plan.backend is Backend.CPU

    def _check_finite(self, parts: Sequence[tuple[mx.array, ...]]) -> None:
        """As the rows would one by one, the first of them having appended by then."""
        plan = self.rows[0].plan
        for keys, values in parts if plan.check_finite else ():
            check_finite(keys, values, plan.hot_dtype, on_cpu=self._on_cpu)

    def stats(self) -> CacheStats:
        """Tokens and bytes of all rows together."""
        return sum_rows(cache.stats() for cache in self.rows)

    def filter(self, rows: Sequence[int]) -> None:
        """Keep only the given rows. Raises CacheError for rows that there are not."""
        check_rows(rows, len(self.rows))
        self.rows = [self.rows[at] for at in rows]
        self._padding = [self._padding[at] for at in rows]

    def extract(self, row: int) -> TwoTierKVCache:
        """The cache of one row."""
        return self.rows[row]

    def pending(self) -> list[mx.array]:
        """Arrays to evaluate before the next step."""
        return [array for cache in self.rows for array in cache.pending()]
