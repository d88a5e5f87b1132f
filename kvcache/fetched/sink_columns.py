"""Where pinned tokens stand among fetched ones: once for each distance that they are met at.

Fetched keys are the same for all queries of a step, and queries that come after a block was let
go meet pinned tokens from nearer than those before. So these come several times, each time turned
for one run of queries, and a mask shows each query its own. Knows no tiers.
"""

from dataclasses import dataclass
from itertools import groupby
from typing import Self

import mlx.core as mx

from kvcache.sight import Sight
from kvcache.snapshot import Tokens, joined
from kvcache.turn import Rotation


@dataclass(frozen=True, kw_only=True)
class SinkColumns:
    """Pinned tokens for runs of queries, one after another.

    pinned: how many there are. runs: the tokens let go before each run, and its queries.
    is_exact: whether a run's queries meet them at one distance, which else is its first one's.
    """

    pinned: int
    runs: tuple[tuple[int, int], ...]
    is_exact: bool = True

    @classmethod
    def of(cls, sight: Sight) -> Self:
        """For each distance at which queries that come with their tokens meet pinned ones."""
        runs = tuple((gone, len(list(alike))) for gone, alike in groupby(sight.gone))
        return cls(pinned=min(sight.pinned, sight.total + sight.new), runs=runs)

    @property
    def added(self) -> int:
        """Columns that there are besides one for each token."""
        return (len(self.runs) - 1) * self.pinned

    def spread(self, tokens: Tokens[mx.array], rotation: Rotation | None) -> Tokens[mx.array]:
        """All tokens, oldest first, with pinned keys turned ahead for each run."""
        if not self.pinned or not any(gone for gone, _ in self.runs):
            return tokens
        pinned = tokens.cut(0, self.pinned)
        near = [Tokens(_ahead(pinned.keys, gone, rotation), pinned.values) for gone, _ in self.runs]
        return joined([*near, tokens.cut(self.pinned, tokens.length)])

    def mask(self, whole: mx.array) -> mx.array:
        """A mask [L, columns], which has one for each token, as it is for spread ones."""
        shown, start = [], 0
        rows = mx.arange(whole.shape[0])[:, None]
        for _, queries in self.runs:
            own = (rows >= start) & (rows < start + queries)
            shown.append(whole[:, : self.pinned] & own)
            start += queries
        return mx.concatenate([*shown, whole[:, self.pinned :]], axis=1)

    def merged(self, mask: mx.array) -> mx.array:
        """A mask [..., L, columns] of spread tokens with one column for each token."""
        shown, start = [], 0
        for number, (_, queries) in enumerate(self.runs):
            columns = slice(number * self.pinned, (number + 1) * self.pinned)
            shown.append(mask[..., start : start + queries, columns])
            start += queries
        others = mask[..., len(self.runs) * self.pinned :]
        return mx.concatenate([mx.concatenate(shown, axis=-2), others], axis=-1)


def _ahead(keys: mx.array, gone: int, rotation: Rotation | None) -> mx.array:
    return keys if rotation is None else rotation(keys, [gone] * keys.shape[2])
