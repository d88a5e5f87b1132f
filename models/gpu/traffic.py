"""Bytes that a product over a matrix of blocks moves between memory and the GPU, by formula.

What is loaded again by neighbours, and so comes from a cache of the GPU, counts once; another
pass over the blocks counts again, as they may be larger than a cache.
`tests/metal/test_prompt_products.py` holds the formula against what the kernels load and write.
Runs nothing.
"""

from dataclasses import dataclass

from models.gpu.product import MOST_INPUTS

# Bytes of the rows that are decoded at a time, for which MLX's matmul waits.
TILE_BYTES = 64 * 2**20
# Bytes of tiles that are there at most, as MLX is ahead of the GPU (`prompt.Pace`).
MOST_DECODED = 2 * TILE_BYTES
_TILE_STEP = 64  # rows of the tiles that MLX's matmul cuts


@dataclass(frozen=True, kw_only=True)
class ProductTraffic:
    """Of y [tokens, rows] = x [tokens, columns] W^T.

    blocks: bytes of W. size: of a number of x, of y and of a decoded weight.
    """

    rows: int
    columns: int
    blocks: int
    tokens: int
    size: int = 2

    @property
    def tile_rows(self) -> int:
        """Rows that are decoded at a time: as many as TILE_BYTES hold, 64 at the least."""
        fit = TILE_BYTES // (self.columns * self.size)
        return min(self.rows, max(1, fit // _TILE_STEP) * _TILE_STEP)

    @property
    def straight(self) -> int:
        """By `product.metal`, which reads the blocks once for every eight rows of x."""
        return -(-self.tokens // MOST_INPUTS) * self.blocks + self._around

    @property
    def expanded(self) -> int:
        """By `rows.metal` and MLX's matmul: decoded weights are written and read.

        Several tiles give parts of y, which are then put together: read and written again.
        """
        decoded = 2 * self.rows * self.columns * self.size
        joined = 2 * self._out if self.tile_rows < self.rows else 0
        return self.blocks + decoded + joined + self._around

    @property
    def expands(self) -> bool:
        """Whether decoding first moves fewer bytes."""
        return self.expanded < self.straight

    @property
    def _out(self) -> int:
        return self.tokens * self.rows * self.size

    @property
    def _around(self) -> int:
        return self.tokens * self.columns * self.size + self._out
