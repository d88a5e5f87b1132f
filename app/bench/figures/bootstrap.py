"""How sure a difference of means is, when both were taken at the same positions of a text."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_RESAMPLES = 4000
# Indices drawn at a time, so that a long text does not need gigabytes.
_DRAWN_AT_ONCE = 2**22


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A difference and the 95% interval of its bootstrap distribution."""

    value: float
    low: float
    high: float


def paired_bootstrap(ours: Floats, theirs: Floats, *, block: int, seed: int = 0) -> Interval:
    """The mean of ours - theirs, resampled by runs of `block` neighbouring positions.

    Neighbours in a text are not independent; whole runs keep what ties them.
    Source: Kuensch, The jackknife and the bootstrap for general stationary
    observations, 1989. Raises ValueError for unequal lengths or no position.
    """
    if ours.shape != theirs.shape or not len(ours):
        raise ValueError(f"got {ours.shape} and {theirs.shape}, expected two equal lengths")
    differences = ours - theirs
    starts = np.arange(max(1, len(differences) - block + 1))
    sums = np.convolve(differences, np.ones(min(block, len(differences))), "valid")  # per run
    runs = -(-len(differences) // block)
    rng = np.random.default_rng(seed)
    at_once = max(1, _DRAWN_AT_ONCE // runs)
    means = np.concatenate(
        [
            sums[rng.integers(0, len(starts), (min(at_once, _RESAMPLES - done), runs))].mean(axis=1)
            for done in range(0, _RESAMPLES, at_once)
        ]
    ) / min(block, len(differences))
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(value=float(differences.mean()), low=float(low), high=float(high))
