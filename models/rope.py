"""Rotary position embedding, in the interleaved order of GGUF's `llama` files.

Source: Su et al., RoFormer (arXiv 2104.09864). llama.cpp permutes the rows of
attn_q and attn_k so that the pairs (2i, 2i+1) turn together; used as they are.
"""

import mlx.core as mx


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
        self._periods: mx.array | None = None
        if frequency_factors is not None:
            exponents = mx.arange(0, dims, 2, dtype=mx.float32) / dims
            self._periods = base**exponents * frequency_factors.astype(mx.float32)

    def __call__(self, x: mx.array, *, offset: int) -> mx.array:
        """Rotate x [B, H, L, D], whose first token stands at position `offset`."""
        return mx.fast.rope(
            x,
            self.dims,
            traditional=True,
            base=self.base if self._periods is None else None,
            scale=1.0 / self.factor,
            offset=offset,
            freqs=self._periods,
        )
