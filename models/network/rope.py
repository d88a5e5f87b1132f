"""Rotary position embedding, in either order of the dimensions.

Source: Su et al., RoFormer (arXiv 2104.09864); YaRN: Peng et al. (arXiv 2309.00071).
llama.cpp permutes the rows of attn_q and attn_k of `llama` files and their kin so that
the pairs (2i, 2i+1) turn together; used as they are.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import ceil, floor, log, pi

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from kvcache import Rotation
from models.errors import GGUFError

# The position of the first token: of all rows alike, or of each.
Starts = int | tuple[int, ...]
Periods = npt.NDArray[np.float64]
# Far beyond any model, yet harmless, as in `config`.
_LEAST_TURNS, _MOST_TURNS = 1e-6, 1e6


@dataclass(frozen=True, kw_only=True)
class Yarn:
    """Frequencies that turn often stay as they are, slow ones are stretched as a whole.

    original: tokens that the model was trained for before it was stretched.
    fast, slow: turns in as many tokens from which on nothing, and up to which everything
    is stretched. log_multiplier: see `magnitude`; 0: none.
    """

    original: int
    fast: float = 32.0
    slow: float = 1.0
    log_multiplier: float = 0.0

    def __post_init__(self) -> None:
        turns = _MOST_TURNS >= self.fast > self.slow >= _LEAST_TURNS
        if self.original < 1 or not turns or self.log_multiplier < 0:
            raise GGUFError(
                f"got YaRN over {self.original} tokens from {self.fast:g} to {self.slow:g} turns "
                f"(multiplier {self.log_multiplier:g}), expected at least one token, "
                "fewer turns at the end than at the start, both "
                f"{_LEAST_TURNS:g} to {_MOST_TURNS:g}, and no negative multiplier"
            )

    def magnitude(self, factor: float) -> float:
        """Of queries and keys that are stretched `factor` times."""
        if factor <= 1:
            return 1.0
        return (1 + 0.1 * log(factor)) / (1 + 0.1 * self.log_multiplier * log(factor))

    def stretched(self, periods: Periods, *, base: float, factor: float) -> Periods:
        """Periods [pairs] of a rope of this base over 2 * pairs dimensions."""
        dims = 2 * len(periods)
        low = max(0, floor(self._dimension(dims, base, self.fast)))
        high = min(dims - 1, ceil(self._dimension(dims, base, self.slow)))
        kept = 1 - np.clip((np.arange(len(periods)) - low) / max(0.001, high - low), 0, 1)
        return periods / ((1 - kept) / factor + kept)

    def _dimension(self, dims: int, base: float, turns: float) -> float:
        """The pair that turns so often in the original context."""
        return dims * log(self.original / (turns * 2 * pi)) / (2 * log(base))


class Rope:
    """Turns the first `dims` dimensions of each head by angles that grow with position.

    base: pair i turns by position / base**(2i / dims).
    factor: linear scaling; positions are divided by it. yarn: spreads it instead.
    frequency_factors: [dims / 2] divisors of the pairs' frequencies
    (`rope_freqs.weight`, which carries Llama-3's scaling), or None.
    magnitude: what queries and keys are multiplied by where they turn; not done here, but by
    whoever takes their products.
    half_split: dimension i turns with i + dims / 2 instead of 2i with 2i + 1.
    """

    def __init__(
        self,
        dims: int,
        *,
        base: float,
        factor: float = 1.0,
        frequency_factors: mx.array | None = None,
        yarn: Yarn | None = None,
        magnitude: float = 1.0,
        half_split: bool = False,
    ) -> None:
        self.dims = dims
        self.magnitude = magnitude
        self.base = base
        self.factor = factor if yarn is None else 1.0
        self.traditional = not half_split
        # Pair i turns by position / periods[i].
        unscaled = base ** (np.arange(0, dims, 2) / dims)
        self._scaled: mx.array | None = None
        if frequency_factors is not None:
            unscaled = unscaled * np.asarray(frequency_factors.astype(mx.float32))
        if yarn is not None:
            unscaled = yarn.stretched(unscaled, base=base, factor=factor)
        if frequency_factors is not None or yarn is not None:
            self._scaled = mx.array(unscaled.astype(np.float32))
        self.periods: Periods = unscaled * self.factor

    @cached_property
    def rotation(self) -> Rotation:
        """What it does to queries and keys, as a pure turn."""
        return Rotation(periods=self.periods, traditional=self.traditional)

    def factors(self, dims: int) -> mx.array:
        """float32 [dims]: the magnitudes of queries and of keys, both on one side."""
        return mx.where(mx.arange(dims) < self.dims, self.magnitude**2, 1.0)

    def __call__(self, x: mx.array, starts: Starts) -> mx.array:
        """Turn x [B, H, L, D], whose first tokens stand at these positions."""
        return self._turned(x, starts if isinstance(starts, int) else _of_rows(starts))

    def leading(self, heads: mx.array, turning: int, *, offset: int) -> mx.array:
        """Turn the first `turning` heads [H, 1, 1, D] of one token in one launch.

        The others are turned by nothing, which leaves them as they are.
        """
        return self._turned(heads, _offsets(turning, len(heads) - turning, offset))

    def _turned(self, x: mx.array, offset: int | mx.array) -> mx.array:
        return mx.fast.rope(
            x,
            self.dims,
            traditional=self.traditional,
            base=self.base if self._scaled is None else None,
            scale=1.0 / self.factor,
            offset=offset,
            freqs=self._scaled,
        )


# All layers of a model ask for the same, one after the other.
@lru_cache(maxsize=8)
def _of_rows(starts: tuple[int, ...]) -> int | mx.array:
    """int32 [B], or one number where rows are alike."""
    return starts[0] if len(set(starts)) == 1 else mx.array(starts, mx.int32)


@lru_cache(maxsize=8)
def _offsets(turning: int, still: int, offset: int) -> mx.array:
    """int32 [turning + still]: the position of each head's only token."""
    return mx.array([offset] * turning + [0] * still, mx.int32)
