"""Many rows of x times a matrix of blocks: by passes over the blocks, or decoded before."""

from dataclasses import dataclass, field, replace

import mlx.core as mx

from kvcache.gpu.kernel import Launcher
from models.gpu.blocks import Blocks
from models.gpu.product import MOST_INPUTS, product
from models.gpu.rows import decoded
from models.gpu.traffic import TILE_BYTES, ProductTraffic


@dataclass(kw_only=True)
class Pace:
    """How far decoding may be ahead of what a GPU has done: MLX lets go of a tile only then.

    most: bytes of tiles between two waits; twice as many may be there.
    """

    most: int = TILE_BYTES
    _queued: int = 0
    _before: mx.array | None = field(default=None, repr=False)

    def wait(self, x: mx.array, tile: int) -> None:
        """Before a tile of so many bytes is queued, of which a product with x is made."""
        self._queued += tile
        if self._queued <= self.most:
            return
        mx.async_eval(x)
        if self._before is not None:
            mx.eval(self._before)
        self._before, self._queued = x, tile


_PACE = Pace()  # of all matrices, which one thread asks one after the other


def product_of_many(
    launch: Launcher,
    blocks: Blocks,
    x: mx.array,
    added: mx.array | None = None,
    *,
    pace: Pace = _PACE,
) -> mx.array:
    """x [any, columns] times the rows of blocks: [rows of x, rows] in x's dtype.

    By whichever way moves fewer bytes (`ProductTraffic`). What is decoded is in x's dtype,
    to which each weight is rounded; beside x and what comes out it takes what `pace` says.
    """
    moved = ProductTraffic(
        rows=blocks.rows,
        columns=blocks.columns,
        blocks=blocks.nbytes,
        tokens=len(x),
        size=x.dtype.size,
    )
    if moved.expands:
        return _by_tiles(launch, blocks, x, added, moved.tile_rows, pace)
    starts = range(0, len(x), MOST_INPUTS)
    passes = [product(launch, blocks, x[at : at + MOST_INPUTS], added) for at in starts]
    return passes[0] if len(passes) == 1 else mx.concatenate(passes)


def _by_tiles(
    launch: Launcher, blocks: Blocks, x: mx.array, added: mx.array | None, rows: int, pace: Pace
) -> mx.array:
    parts: list[mx.array] = []
    for start in range(0, blocks.rows, rows):
        tile = blocks.part(start, min(start + rows, blocks.rows))
        # Of all that came before it, this is the last.
        before = parts[-1] if parts else x
        pace.wait(before, tile.rows * tile.columns * x.dtype.size)
        (words,) = mx.depends([tile.words], [before])
        weight = decoded(launch, replace(tile, words=words), x.dtype).T
        some = None if added is None else added[start : start + rows].astype(x.dtype)
        parts.append(x @ weight if some is None else mx.addmm(some, x, weight))
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=-1)
