"""Mean, standard deviation and median of repeated measurements."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Of repeated measurements; sd is the sample's, 0.0 for a single one."""

    mean: float
    sd: float
    median: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Raises StatisticsError for no value."""
        return cls(
            mean=fmean(values),
            sd=stdev(values) if len(values) > 1 else 0.0,
            median=median(values),
        )
