"""`bench speed`: how fast prompts are read and tokens come, at several depths.

Cases of one depth run in turns, repetition by repetition, so that a machine
whose speed drifts treats all engines alike; medians are quoted.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import mlx.core as mx

from app import __version__
from app.bench.case import NO_CACHE, Case, EngineName, Measurement
from app.bench.environment import physical_cores, version_of
from app.bench.meter import Meter
from app.bench.process import measure
from app.bench.settings import SpeedSettings
from app.bench.spread import Spread
from app.console import note
from kvcache.errors import EmberError

SHORT_PROMPT = 16
SHORT_LENGTHS = (10, 50, 100)
# mlx-lm on a CPU takes a minute for what the others do in one or two seconds: beside
# it they do a smaller test too.
SMALL_PP, SMALL_TG = 128, 16
# A case that takes longer than this in all its repetitions gets fewer of them.
_CASE_SECONDS = 45.0
_LLAMA_CPP_KV = ("f16", "q8_0", "q4_0")
# On a CPU llama.cpp reads prompts over an encoded cache ever more slowly: 8000 tokens take minutes.
_DEEPEST_SLOW = 4096
_MLX_LM_KV = ("KVCache", "QuantizedKVCache 8", "QuantizedKVCache 4", "RotatingKVCache")
# Of peers: the package whose version counts, and what is not the engine's default.
_SETTINGS = {
    EngineName.LLAMA_CPP: ("llama-cpp-python", "flash attention, n_batch 512, n_ubatch 512"),
    EngineName.MLX_LM: ("mlx-lm", "prefill step 512, group 64, ember's weights"),
}
# Expected: seconds to start, prompt tokens a second, seconds a token.
_PACE = {
    EngineName.EMBER: (2.0, 500.0, 0.015),
    EngineName.LLAMA_CPP: (2.0, 220.0, 0.017),
    EngineName.MLX_LM: (3.0, 11.0, 0.12),
}

RowsOf = Callable[[Case, Sequence[Measurement]], "list[SpeedRow]"]


@dataclass(frozen=True, kw_only=True)
class SpeedRow:
    """One line of the table: one test of one engine at one depth. tps is the median.

    test: pp512 reads a prompt, tg64 generates, gen10 both with a short prompt.
    tps counts the tokens of all rows of a batch.
    p99_over_median: of the time per generated token, 0.0 for other tests.
    seconds: of the whole test, the median.
    kv_token_bytes: bytes held for each token held.
    settings: the engine's version, and what the other fields do not say.
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


@dataclass(frozen=True, kw_only=True)
class Group:
    """Cases that take turns, and how their measurements become rows."""

    cases: tuple[Case, ...]
    rows: RowsOf


def groups(settings: SpeedSettings) -> list[Group]:
    """All cases, those of one depth and batch together."""
    found = [
        Group(cases=tuple(cases(settings, depth, batch)), rows=rows_of)
        for batch in settings.batch
        for depth in (settings.depths if batch == 1 else settings.depths[:1])
    ]
    if settings.peers and _on_cpu():
        found.append(Group(cases=tuple(small_cases(settings)), rows=rows_of))
    if settings.short:
        found.append(Group(cases=tuple(short_cases(settings)), rows=short_rows_of))
    return found


def cases(settings: SpeedSettings, depth: int, batch: int = 1) -> list[Case]:
    """The cases of one depth, ember's first; peers compute one row at a time."""
    kinds = [(EngineName.EMBER, kv) for kv in settings.kv]
    if settings.peers and batch == 1:
        slow = _on_cpu() and depth > _DEEPEST_SLOW
        kinds += [(EngineName.LLAMA_CPP, kv) for kv in _LLAMA_CPP_KV[: 1 if slow else None]]
        if not _on_cpu():
            kinds += [(EngineName.MLX_LM, kv) for kv in _MLX_LM_KV]
    return [
        _case(settings, *kind, depth=depth, pp=settings.pp, tg=settings.tg, batch=batch)
        for kind in kinds
    ]


def small_cases(settings: SpeedSettings) -> list[Case]:
    """mlx-lm's caches where it is slow, and the others' fp16 and default beside them."""
    kinds = [(EngineName.EMBER, settings.kv[0]), (EngineName.EMBER, "f16")]
    kinds += [(EngineName.LLAMA_CPP, "f16")]
    kinds += [(EngineName.MLX_LM, kv) for kv in _MLX_LM_KV]
    return [
        _case(settings, *kind, depth=0, pp=SMALL_PP, tg=SMALL_TG, batch=1)
        for kind in dict.fromkeys(kinds)
    ]


def short_cases(settings: SpeedSettings) -> list[Case]:
    """What others publish: a short prompt and up to 100 tokens, with and without a cache."""
    kinds = [(EngineName.EMBER, kv) for kv in (NO_CACHE, "f16", settings.kv[0])]
    if settings.peers:
        kinds += [(EngineName.LLAMA_CPP, "f16"), (EngineName.MLX_LM, "KVCache")]
    longest = SHORT_LENGTHS[-1]
    return [
        _case(settings, *kind, depth=0, pp=SHORT_PROMPT, tg=longest, batch=1)
        for kind in dict.fromkeys(kinds)
    ]


def expected_seconds(settings: SpeedSettings) -> float:
    """Of the whole section."""
    return sum(
        _case_seconds(case) * _reps(settings, case)
        for group in groups(settings)
        for case in group.cases
    )


def run(settings: SpeedSettings, meter: Meter) -> Iterator[SpeedRow]:
    """Rows of each group as it ends; an interrupt leaves those of finished repetitions.

    A peer that cannot run is left out, with a line on stderr; raises EmberError
    where ember itself cannot.
    """
    for group in groups(settings):
        found: dict[Case, list[Measurement]] = {case: [] for case in group.cases}
        try:
            _measure_in_turns(settings, found, meter)
        except KeyboardInterrupt:
            yield from _rows(group, found)
            raise
        yield from _rows(group, found)


def _measure_in_turns(
    settings: SpeedSettings, found: dict[Case, list[Measurement]], meter: Meter
) -> None:
    for rep in range(settings.reps):
        for case in [case for case in found if rep < _reps(settings, case)]:
            label = f"speed: {case.engine.value} {case.kv} at depth {case.depth}"
            batch = f", batch {case.batch}" if case.batch > 1 else ""
            with meter.step(f"{label}{batch}, run {rep + 1}", _case_seconds(case)):
                try:
                    found[case].append(measure(case))
                except EmberError as error:
                    if case.engine is EngineName.EMBER:
                        raise
                    note(f"{case.engine.value} {case.kv} left out: {error}")
                    del found[case]


def _rows(group: Group, found: dict[Case, list[Measurement]]) -> Iterator[SpeedRow]:
    for case, measurements in found.items():
        if measurements:
            yield from group.rows(case, measurements)


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


def _case(
    settings: SpeedSettings,
    engine: EngineName,
    kv: str,
    *,
    depth: int,
    pp: int,
    tg: int,
    batch: int,
) -> Case:
    threads = settings.threads
    if engine is EngineName.LLAMA_CPP and not threads:
        # The binding's own default is half of the processors, which is too few of two cores.
        threads = physical_cores()
    return Case(
        engine=engine,
        model=settings.model,
        kv=kv,
        backend=settings.backend if engine is EngineName.EMBER else "auto",
        threads=threads,
        depth=depth,
        pp=pp,
        tg=tg,
        batch=batch,
    )


def _settings(engine: EngineName) -> str:
    if engine is EngineName.EMBER:
        return f"{__version__}, defaults"
    package, told = _SETTINGS[engine]
    return f"{package} {version_of(package)}, {told}"


def _on_cpu() -> bool:
    """Where MLX's operators reach a small part of what the processor does, and mlx-lm is slow."""
    return mx.default_device().type == mx.DeviceType.cpu


def _reps(settings: SpeedSettings, case: Case) -> int:
    """As many as the settings ask for, fewer of a long case; mlx-lm, slow and steady, once."""
    if case.engine is EngineName.MLX_LM and _on_cpu():
        return 1
    return max(1, min(settings.reps, int(_CASE_SECONDS / _case_seconds(case))))


def _case_seconds(case: Case) -> float:
    """Expected, of one run."""
    start, reading, writing = _PACE[case.engine]
    read = case.depth + case.pp
    anew = case.tg * (case.pp + case.tg / 2) if case.kv == NO_CACHE else 0
    return start + case.batch * (read + anew) / reading + case.tg * writing
