"""Rotary position embedding, in the interleaved order of GGUF's `llama` files.

Source: Su et al., RoFormer (arXiv 2104.09864). llama.cpp permutes the rows of
attn_q and attn_k so that the pairs (2i, 2i+1) turn together; used as they are.
"""

from functools import lru_cache

import mlx.core as mx
import numpy as np
import numpy.typing as npt


class Rope:
    """Turns the first `dims` dimensions of each head by angles that grow with position.

    base: pair i turns by position / base**(2i / dims).
    factor: linear scaling; positions are divided by it.
    frequency_factors: [dims / 2] divisors of the pairs' frequencies
    (`rope_freqs.weight`, which carries Llama-3's scaling), or None.
    """

    def __init__(
        self,
        dims: int,
        *,
        base: float,
        factor: float = 1.0,
        frequency_factors: mx.array | None = None,
    ) -> None:
        self.dims = dims
        self.base = base
        self.factor = factor
        # Pair i turns by position / periods[i].
        unscaled = base ** (np.arange(0, dims, 2) / dims)
        self._scaled: mx.array | None = None
        if frequency_factors is not None:
            unscaled = unscaled * np.asarray(frequency_factors.astype(mx.float32))
            self._scaled = mx.array(unscaled.astype(np.float32))
        self.periods: npt.NDArray[np.float64] = unscaled * factor

    def __call__(self, x: mx.array, *, offset: int) -> mx.array:
        """Turn x [B, H, L, D], whose first token stands at position `offset`."""
        return self._turned(x, offset)

    def leading(self, heads: mx.array, turning: int, *, offset: int) -> mx.array:
        """Turn the first `turning` heads [H, 1, 1, D] of one token in one launch.

        The others are turned by nothing, which leaves them as they are.
        """
        return self._turned(heads, _offsets(turning, len(heads) - turning, offset))

    def _turned(self, x: mx.array, offset: int | mx.array) -> mx.array:
        return mx.fast.rope(
            x,
            self.dims,
            traditional=True,
            base=self.base if self._scaled is None else None,
            scale=1.0 / self.factor,
            offset=offset,
            freqs=self._scaled,
        )


# All layers of a model ask for the same, one after the other.
@lru_cache(maxsize=8)
def _offsets(turning: int, still: int, offset: int) -> mx.array:
    """int32 [turning + still]: the position of each head's only token."""
    return mx.array([offset] * turning + [0] * still, mx.int32)
