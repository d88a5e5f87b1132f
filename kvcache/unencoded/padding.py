"""The leading tokens of each row of a batch that are padding, and never attended to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from kvcache.config import MOST_TOKENS
from kvcache.given import integers, refused
from kvcache.reference import Mask
from kvcache.sight import Sight


@dataclass(frozen=True, kw_only=True, eq=False)
class LeftPadding:
    """rows: how many tokens of each row are padding, int32 [B]."""

    rows: npt.NDArray[np.int32]

    @classmethod
    def of(cls, given: Sequence[int]) -> Self:
        """A caller's numbers. Raises CacheError."""
        rows = integers("left_padding", given)
        if not rows or max(rows) > MOST_TOKENS:
            raise refused("left_padding", given, "a number of tokens for each row")
        return cls(rows=np.array(rows, np.int32))

    def of_rows(self, kept: Sequence[int]) -> "LeftPadding":
        """Of some rows."""
        return LeftPadding(rows=self.rows[list(kept)])

    def visible(self, queries: int, held: int, mask: Mask) -> mx.array:
        """A caller's mask with padding hidden; an array is taken as it is."""
        if isinstance(mask, mx.array):
            return mask
        if mask is None:
            return self.hide(mx.ones((queries, held), mx.bool_))
        return self.hide(Sight.of_all(queries, held).full())

    def hide(self, mask: mx.array) -> mx.array:
        """[L, S] -> [B, 1, L, S] with each row's padding hidden from its tokens.

        The last query is the newest token. Padding still sees padding: a row with
        nothing visible would make NaN.
        """
        length, held = mask.shape
        count = mx.array(self.rows)[:, None, None, None]
        real_key = mx.arange(held) >= count
        padding_query = mx.arange(held - length, held)[:, None] < count
        return mask & (real_key | padding_query)
