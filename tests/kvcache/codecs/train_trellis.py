"""How the tables of `kvcache.codecs.trellis` came about; prints them: python -m ... [ROUNDS]."""

import sys
from statistics import NormalDist

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from kvcache.codecs import trellis

_DIM, _ROWS = 64, 4096


def centroids(bits: int, rows: int, table: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The mean of those numbers of N(0, 1) that the search codes by each level of `table`.

    Of a level and its negative the mean of both.
    """
    x = np.random.default_rng(3).normal(size=(rows, _DIM)).astype(np.float32)
    codes = trellis.search(mx.array(x), bits)
    indices = np.searchsorted(table, np.asarray(trellis.lookup(codes, bits)) - 1e-4)
    sums = np.bincount(indices.ravel(), x.ravel(), len(table))
    means = sums / np.bincount(indices.ravel(), minlength=len(table))
    return (means - means[::-1]) / 2


def train(bits: int, rounds: int) -> npt.NDArray[np.float64]:
    """Levels [2^(bits + 1)] after so many rounds, from quantiles of N(0, 1)."""
    count = 2 ** (bits + 1)
    table = 1.15 * np.array([NormalDist().inv_cdf((i + 0.5) / count) for i in range(count)])
    for _ in range(rounds):
        trellis.levels = lambda _bits, now=tuple(table): now  # type: ignore[misc]
        table = centroids(bits, _ROWS, table)
    return table


if __name__ == "__main__":
    for width in (2, 3, 4):
        found = train(width, int(sys.argv[1]) if len(sys.argv) > 1 else 17)
        print(width, np.round(found[2**width :] * trellis.UNIT, 2).tolist())
