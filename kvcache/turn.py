"""Turning queries by whole positions, as the model's rotary embedding would.

Sinks stay at the beginning while the window moves on. A query attends to them
with a copy of itself turned back by the tokens that were let go, so that its
distance to them never exceeds the window and no key is ever touched again.
Source: RoPE, arXiv 2104.09864; sinks, StreamingLLM, arXiv 2309.17453.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from kvcache.errors import CacheError
from kvcache.given import flag, refused

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Rotation:
    """A pure turn of head vectors: no scale, whatever the rope itself multiplies by.

    periods: [pairs]; pair i turns by position / periods[i]. Dimensions from
    2 * pairs on stay as they are.
    traditional: pairs are (2i, 2i + 1); otherwise (i, i + pairs).
    """

    periods: npt.NDArray[np.float64]
    traditional: bool

    def __post_init__(self) -> None:
        try:
            periods = np.asarray(self.periods, np.float64)
        except (TypeError, ValueError):
            raise refused("periods", self.periods, "a number for each pair of channels") from None
        if periods.ndim != 1 or np.isnan(periods).any() or not periods.all():
            raise refused("periods", self.periods, "a number for each pair of channels, none 0")
        object.__setattr__(self, "periods", periods)
        flag("traditional", self.traditional)

    @cached_property
    def key(self) -> tuple[bytes, bool]:
        """The same for rotations that do the same, such as those of a restored cache's layers."""
        return self.periods.tobytes(), self.traditional

    def __call__(self, x: mx.array, by: Sequence[int]) -> mx.array:
        """Turn x [B, H, L, D]: row i by by[i] positions; float32 inside, x's dtype outside.

        Raises CacheError for fewer channels than it turns, or another number of rows.
        """
        if not any(by):
            return x
        if x.ndim != 4 or x.shape[-1] < 2 * len(self.periods) or x.shape[-2] != len(by):
            raise CacheError(
                f"got {x.shape} and {len(by)} positions, expected [B, H, {len(by)}, "
                f"{2 * len(self.periods)} or more]"
            )
        cos, sin = (mx.array(table) for table in _tables(self.key, tuple(by)))  # [L, pairs]
        pairs = len(self.periods)
        turning = x[..., : 2 * pairs].astype(mx.float32)
        if self.traditional:
            a, b = turning[..., 0::2], turning[..., 1::2]
            turned = mx.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).flatten(-2)
        else:
            a, b = turning[..., :pairs], turning[..., pairs:]
            turned = mx.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
        turned = turned.astype(x.dtype)
        if x.shape[-1] == 2 * pairs:
            return turned
        return mx.concatenate([turned, x[..., 2 * pairs :]], axis=-1)

    def table(self, by: tuple[int, ...]) -> mx.array:
        """Cosine and sine [L, pairs, 2] of turning by by[i] positions, float32, for kernels."""
        return _interleaved(self.key, by)


# Of a layer that knows no positions: whatever is let go, sinks are met as they are.
NO_ROPE = Rotation(periods=np.empty(0), traditional=False)


# All layers of a model turn alike, one after the other.
@lru_cache(maxsize=8)
def _tables(key: tuple[bytes, bool], by: tuple[int, ...]) -> tuple[Floats, Floats]:
    """Cosines and sines [L, pairs]."""
    angles = np.array(by, np.float64)[:, None] / np.frombuffer(key[0], np.float64)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


@lru_cache(maxsize=8)
def _interleaved(key: tuple[bytes, bool], by: tuple[int, ...]) -> mx.array:
    return mx.array(np.stack(_tables(key, by), axis=-1))
