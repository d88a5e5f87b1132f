"""The rows of `bench speed`, made of measurements."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

from app import __version__
from app.bench.engines.case import Case, EngineName, Measurement
from app.bench.environment import version_of
from app.bench.figures.spread import Spread

SHORT_LENGTHS = (10, 50, 100)
# Of a trial's speed: what lies below is measured again.
_ENOUGH = 0.93
# Of peers: the package whose version counts, and what neither rows nor settings say.
PACKAGES = {
    EngineName.LLAMA_CPP: ("llama-cpp-python", ""),
    EngineName.MLX_LM: ("mlx-lm", ", ember's weights"),
}


@dataclass(frozen=True, kw_only=True)
class SpeedRow:
    """One line of the table: one test of one engine at one depth. tps is the median.

    test: pp512 reads a prompt, tg64 generates, gen10 both with a short prompt.
    tps counts the tokens of all rows of a batch.
    p99_over_median: of the time per generated token, 0.0 for other tests.
    seconds: of the whole test, the median.
    kv_token_bytes: bytes held for each token held.
    settings: the engine's version, and what the other fields do not say.
    setting: of a peer, what it was measured with: the best of those that were tried.
    tried: tokens per second that each gave in a short trial.
    read_share: of the memory's measured bandwidth, what tg's weights (as in the file) and cache
    come to; 0.0 for other tests, and for mlx-lm, whose weights are others.
    """

    engine: str
    model: str
    kv: str
    backend: str
    threads: int
    test: str
    depth: int
    batch: int
    tps: float
    tps_mean: float
    tps_sd: float
    seconds: float
    ttft_s: float
    kv_bytes: int
    kv_token_bytes: float
    peak_rss_bytes: int
    p99_over_median: float
    reps: int
    settings: str
    setting: str = ""
    tried: dict[str, float] = field(default_factory=dict)
    read_share: float = 0.0

    @property
    def falls_short(self) -> bool:
        """Whether its setting's trial gave clearly more."""
        return self.tps < _ENOUGH * self.tried.get(self.setting, 0.0)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """weight_bytes: that a step reads. bytes_s: that the memory gives in a second."""

    weight_bytes: int
    bytes_s: float

    def shown(self, row: SpeedRow) -> SpeedRow:
        """The row with its share of the bandwidth."""
        if not row.test.startswith("tg") or row.engine == EngineName.MLX_LM.value:
            return row
        steps = row.tps / row.batch
        return replace(row, read_share=steps * (self.weight_bytes + row.kv_bytes) / self.bytes_s)


RowsOf = Callable[[Case, Sequence[Measurement]], "list[SpeedRow]"]


def rows_of(case: Case, measurements: Sequence[Measurement]) -> list[SpeedRow]:
    """The prompt row and the generation row of a case's repetitions."""
    token_s = sorted(seconds for one in measurements for seconds in one.token_s)
    tail = token_s[int(len(token_s) * 0.99)] / median(token_s)
    reading = [one.pp_s for one in measurements]
    writing = [sum(one.token_s) for one in measurements]
    return [
        _row(case, measurements, f"pp{case.pp}", case.pp, reading),
        _row(case, measurements, f"tg{case.tg}", case.tg, writing, tail=tail),
    ]


def short_rows_of(case: Case, measurements: Sequence[Measurement]) -> list[SpeedRow]:
    """A row for each short length: prompt and tokens together, tokens counted alone."""
    return [
        _row(
            case,
            measurements,
            f"gen{length}",
            length,
            [one.pp_s + sum(one.token_s[:length]) for one in measurements],
        )
        for length in SHORT_LENGTHS
    ]


def _row(
    case: Case,
    measurements: Sequence[Measurement],
    test: str,
    tokens: int,
    seconds: Sequence[float],
    *,
    tail: float = 0.0,
) -> SpeedRow:
    speed = Spread.of([case.batch * tokens / each for each in seconds])
    kv_bytes = max(one.kv_bytes for one in measurements)
    return SpeedRow(
        engine=case.engine.value,
        model=Path(case.model).stem,
        kv=case.kv,
        backend=measurements[0].backend,
        threads=measurements[0].threads,
        test=test,
        depth=case.depth,
        batch=case.batch,
        tps=speed.median,
        tps_mean=speed.mean,
        tps_sd=speed.sd,
        seconds=median(seconds),
        ttft_s=median(one.pp_s + one.token_s[0] for one in measurements),
        kv_bytes=kv_bytes,
        kv_token_bytes=kv_bytes / (case.batch * (case.depth + case.pp + case.tg)),
        peak_rss_bytes=max(one.peak_rss_bytes for one in measurements),
        p99_over_median=tail,
        reps=len(measurements),
        settings=_settings(case.engine),
    )


def _settings(engine: EngineName) -> str:
    if engine is EngineName.EMBER:
        return f"{__version__}, defaults"
    package, told = PACKAGES[engine]
    return f"{package} {version_of(package)}{told}"
