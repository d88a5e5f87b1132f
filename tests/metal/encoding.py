"""Blocks to encode, and how far a kernel's are from the codecs' own MLX operations.

Equal bits are what the emulator is held to: the kernel adds up in the order that MLX
has on Linux' processors. MLX on a GPU, and on a Mac's processor, adds up in orders of
its own; there codes may differ where a number lies halfway between two within
rounding, and stored scales by one unit in the last place: `is_rounding`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from kvcache import CacheConfig
from kvcache.codecs import codec
from kvcache.codecs.affine import ChannelAffineCodec
from kvcache.codecs.base import Codec, Encoded, Parts
from kvcache.codecs.packing import unpack
from kvcache.gpu import TierEncoder
from kvcache.gpu.encode import Leaving
from kvcache.gpu.kernel import Launcher
from kvcache.snapshot import Tokens
from tests.kvcache.codecs.metrics import metric

MOST_TIES = 0.001  # of codes, and of scales, or values of f16, by more than the last place


@dataclass(frozen=True, kw_only=True)
class EncodeCase:
    """Blocks of a layer.

    held: tokens of the blocks that lie in the hot ring, which begins at `start`; the others
    are new, after `older` new ones that no block takes. times: all numbers are multiplied.
    feedback: of keys, in the metric of some queries.
    """

    keys: str = CacheConfig.keys
    values: str = CacheConfig.values
    dim: int = 64
    block: int = 64
    blocks: int = 2
    batch: int = 2
    kv_heads: int = 3
    held: int = 0
    start: int = 0
    older: int = 0
    dtype: mx.Dtype = mx.float16
    times: float = 1.0
    feedback: bool = False

    @property
    def codecs(self) -> tuple[Codec, Codec]:
        """Of keys and values, each with a rotation of its own."""
        keys, values = codec(self.keys, seed=3), codec(self.values, seed=4)
        if self.feedback:
            assert isinstance(keys, ChannelAffineCodec)
            keys = keys.in_metric(metric(self.kv_heads, self.dim))
        return keys, values

    @property
    def tokens(self) -> int:
        """Of all blocks."""
        return self.blocks * self.block


def drawn(case: EncodeCase) -> Tokens[mx.array]:
    """Keys and values as models have them: outliers, an offset, tokens of very unequal length."""
    random = np.random.default_rng(5)
    size = case.batch, case.kv_heads, case.tokens, case.dim
    sides = []
    for _ in "kv":
        x = random.normal(size=size) * random.uniform(0.3, 3, size=(*size[:3], 1))
        x[..., 5] *= 9
        x += random.normal(size=(1, case.kv_heads, 1, case.dim))
        x[:, :, 1::11] *= 0.01
        sides.append(mx.array((case.times * x).astype(np.float32)).astype(case.dtype))
    return Tokens(*sides)


def leaving(case: EncodeCase, tokens: Tokens[mx.array]) -> Leaving:
    """The tokens where a cache holds them: some in a ring that has others before and after."""
    number = 7 * case.block
    capacity = max(case.held + 5, case.start + 1)
    at = [(number + i) % capacity for i in range(case.held)]
    ring = Tokens(*(_ring(side[:, :, : case.held], at, capacity) for side in tokens))
    fresh = Tokens(*(_after_others(side[:, :, case.held :], case.older) for side in tokens))
    return Leaving(
        number=number,
        blocks=case.blocks,
        block=case.block,
        ring=ring if case.held else None,
        capacity=capacity,
        end=number + case.held - case.older,
        new=fresh if case.held < case.tokens else None,
    )


def _ring(tokens: mx.array, at: list[int], capacity: int) -> mx.array:
    ring = mx.full((*tokens.shape[:2], capacity, tokens.shape[3]), 99, tokens.dtype)
    if at:
        ring[:, :, mx.array(at)] = tokens
    return ring


def _after_others(tokens: mx.array, older: int) -> mx.array:
    others = mx.full((*tokens.shape[:2], older, tokens.shape[3]), 77, tokens.dtype)
    return mx.concatenate([others, tokens], axis=2)


def encoded(case: EncodeCase, launch: Launcher) -> tuple[Encoded, Encoded]:
    """By the kernel."""
    return TierEncoder(launch=launch).encode(case.codecs, leaving(case, drawn(case)))


@cache
def expected(case: EncodeCase) -> list[Parts]:
    """By the codecs: parts [blocks, B, Hkv, ...] of keys and of values."""
    return composed(case, drawn(case))


def composed(case: EncodeCase, tokens: Tokens[mx.array]) -> list[Parts]:
    """The same of other tokens."""
    shape = case.batch, case.kv_heads, case.blocks, case.block, case.dim
    found: list[Parts] = []
    for each, side in zip(case.codecs, tokens, strict=True):
        blocks = mx.moveaxis(side.reshape(shape), 2, 0)
        parts = [each.encode(block).parts for block in blocks]
        found.append({name: mx.stack([part[name] for part in parts]) for name in parts[0]})
    return found


def unlike(case: EncodeCase, launch: Launcher) -> list[str]:
    """The parts that are not equal, number by number, -0 being 0."""
    return [
        name
        for made, wanted in zip(encoded(case, launch), expected(case), strict=True)
        for name in {*made.parts, *wanted}
        if not np.array_equal(*(np.array(parts[name]) for parts in (made.parts, wanted)))
    ]


def differing(case: EncodeCase, launch: Launcher) -> tuple[float, float]:
    """How the kernel's blocks differ from the codecs', as `shares`."""
    return shares(case, [each.parts for each in encoded(case, launch)])


def shares(case: EncodeCase, found: Sequence[Parts]) -> tuple[float, float]:
    """The shares of codes that differ at all, and of scales that do by more than one last place."""
    codes, scales = [], []
    for each, parts, wanted in zip(case.codecs, found, expected(case), strict=True):
        for name, want in wanted.items():
            pair = parts[name], want
            if want.dtype == mx.uint32:
                got, right = (np.array(unpack(x, each.code_bits, case.dim)) for x in pair)
                codes.append(got != right)
            else:
                got, right = (np.array(x).view(np.int16).astype(int) for x in pair)
                scales.append(abs(got - right) > 1)
    return _share(codes), _share(scales)


def _share(differences: list[npt.NDArray[np.bool_]]) -> float:
    return float(np.mean(np.concatenate([np.zeros(1, bool), *map(np.ravel, differences)])))


def is_rounding(codes: float, scales: float) -> bool:
    """Whether shares that differ are no more than sums in another order give."""
    return max(codes, scales) <= MOST_TIES
