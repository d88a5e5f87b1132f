"""A network's matrices on one of several ranks, and where the ranks meet.

A rank's matrices are its backend's, of its part (`share`) of each; what is here adds up or puts
together what all ranks have computed, so that the network does not know that there are others.
Every rank must ask for the same, in the same order: each waits for all.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import mlx.core as mx
import mlx.nn as nn

from kvcache.errors import EmberError, quoted
from models.gguf.tensor import Tensor
from models.network.layers import HoldMatrix, Projection
from models.network.share import Share, Split

Group = mx.distributed.Group


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """A rank's share, and the group that it is in."""

    share: Share
    group: Group

    def matrix(
        self,
        name: str,
        tensors: Sequence[Tensor],
        bias: mx.array | None,
        hold: HoldMatrix,
        dtype: mx.Dtype,
    ) -> Projection:
        """The matrix of all ranks; `hold` makes the rank's own part of it, of these tensors."""
        match self.share.split(name):
            case Split.HEAD_COLUMNS | Split.FFN_COLUMNS:
                return Summed(hold(tensors, None, dtype), bias, self.group)
            case Split.TOKENS:
                return OfVocabulary(hold(tensors, bias, dtype), self)
        return hold(tensors, bias, dtype)


class Summed(nn.Module):
    """A matrix whose columns the ranks share: the sum of their products, and a bias, once."""

    def __init__(self, own: Projection, bias: mx.array | None, group: Group) -> None:
        super().__init__()
        self.own = own
        if bias is not None:
            self.bias = bias
        self._group = group

    def __call__(self, x: mx.array) -> mx.array:
        y = mx.distributed.all_sum(self["own"](x), group=self._group)
        return y + self["bias"] if "bias" in self else y

    @property
    def rows(self) -> int:
        return self.own.rows

    def look_up(self, ids: mx.array, scale: float) -> mx.array:
        raise AssertionError("rows are looked up in tables of tokens alone")


class OfVocabulary(nn.Module):
    """A matrix of a row for each token, of which each rank has some.

    A row is looked up by the rank that has it; products are gathered from all.
    """

    def __init__(self, own: Projection, ranks: Ranks) -> None:
        super().__init__()
        self.own, self._group = own, ranks.group
        share = ranks.share
        parts = [replace(share, rank=rank).own_tokens for rank in range(share.size)]
        self.rows = parts[-1].stop
        self._part, self._counts = share.own_tokens, [len(part) for part in parts]

    def __call__(self, x: mx.array) -> mx.array:
        y = mx.moveaxis(self["own"](x), -1, 0)
        missing = max(self._counts) - len(y)
        y = mx.pad(y, [(0, missing), *[(0, 0)] * (y.ndim - 1)])
        parts = mx.split(mx.distributed.all_gather(y, group=self._group), len(self._counts))
        whole = [part[:count] for part, count in zip(parts, self._counts, strict=True)]
        return mx.moveaxis(mx.concatenate(whole), 0, -1)

    def look_up(self, ids: mx.array, scale: float) -> mx.array:
        at = ids.astype(mx.int64) - self._part.start
        mine = (at >= 0) & (at < len(self._part))
        found = self["own"].look_up(mx.clip(at, 0, len(self._part) - 1), scale)
        return mx.distributed.all_sum(mx.where(mine[..., None], found, 0), group=self._group)


class RowNorm(nn.RMSNorm):
    """A norm over the numbers of all ranks, of which each has as many."""

    def __init__(self, weight: mx.array, eps: float, group: Group) -> None:
        super().__init__(weight.size, eps)
        self.weight, self._group = weight, group

    def __call__(self, x: mx.array) -> mx.array:
        wide = x.astype(mx.float32)
        squares = mx.square(wide).sum(-1, keepdims=True)
        whole = mx.distributed.all_sum(squares, group=self._group)
        mean = whole / (x.shape[-1] * self._group.size())
        return (wide * mx.rsqrt(mean + self.eps)).astype(x.dtype) * self.weight


def checked(group: object) -> Group | None:
    """A group of several ranks; None for none, or for one alone. Raises EmberError."""
    if group is not None and not isinstance(group, Group):
        raise EmberError(
            f"got group={quoted(group)}, expected what mlx.core.distributed.init gives"
        )
    return group if group is not None and group.size() > 1 else None
