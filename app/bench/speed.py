"""`bench speed`: how fast prompts are read and tokens come, at several depths.

Cases of one depth run in turns, repetition by repetition, so that a machine
whose speed drifts treats all engines alike; medians are quoted.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median, stdev
from typing import Any

from app.bench.case import Case, EngineName, Measurement
from kvcache.errors import EmberError

SCHEMA = 1
_PEER_KV = ("f16", "q8_0", "q4_0")
OnCase = Callable[[Case, int], None]


@dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    """What to measure; see `Case` for the fields' meaning."""

    model: str
    kv: tuple[str, ...]
    backend: str
    threads: int
    depths: tuple[int, ...]
    pp: int
    tg: int
    reps: int
    peers: bool


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: one test of one engine at one depth. tps is the median.

    p99_over_median: of the time per generated token, 0.0 for prompts.
    """

    engine: str
    model: str
    kv: str
    backend: str
    threads: int
    test: str
    depth: int
    tps: float
    tps_sd: float
    ttft_s: float
    kv_bytes: int
    peak_rss_bytes: int
    p99_over_median: float


def cases(config: SpeedConfig, depth: int) -> list[Case]:
    """The cases of one depth, ember's first."""
    kinds = [(EngineName.EMBER, kv, config.backend) for kv in config.kv]
    if config.peers:
        kinds += [(EngineName.LLAMA_CPP, kv, "auto") for kv in _PEER_KV]
        # mlx-lm fills deep caches on a CPU at a few tokens a second: only the start.
        if depth == 0:
            kinds.append((EngineName.MLX_LM, "f32", "auto"))
    return [
        Case(
            engine=engine,
            model=config.model,
            kv=kv,
            backend=backend,
            threads=config.threads,
            depth=depth,
            pp=config.pp,
            tg=config.tg,
        )
        for engine, kv, backend in kinds
    ]


def run(config: SpeedConfig, on_case: OnCase) -> list[Row]:
    """Measure everything; `on_case` is told each case and repetition before it runs.

    A peer that cannot run is left out, with a line on stderr; raises EmberError
    where ember itself cannot.
    """
    rows: list[Row] = []
    for depth in config.depths:
        found: dict[Case, list[Measurement]] = {case: [] for case in cases(config, depth)}
        for rep in range(config.reps):
            for case in list(found):
                on_case(case, rep)
                try:
                    found[case].append(measure(case))
                except EmberError as error:
                    if case.engine is EngineName.EMBER:
                        raise
                    print(
                        f"ember: {case.engine.value} {case.kv} left out: {error}", file=sys.stderr
                    )
                    del found[case]
        for case, measurements in found.items():
            rows += rows_of(case, measurements)
    return rows


def measure(case: Case) -> Measurement:
    """Run one case in a process of its own. Raises EmberError with its last line."""
    fields = asdict(case) | {"engine": case.engine.value}
    environment = dict(os.environ)
    if case.threads:
        environment["EMBER_THREADS"] = str(case.threads)
    command = [sys.executable, "-m", "app.bench.measure", json.dumps(fields)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise EmberError(f"the measurement of {case.engine.value} failed: {lines[-1]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return Measurement(**found | {"token_s": tuple(found["token_s"])})


def rows_of(case: Case, measurements: Sequence[Measurement]) -> list[Row]:
    """The prompt row and the generation row of a case's repetitions."""
    token_s = sorted(seconds for one in measurements for seconds in one.token_s)
    reading = [case.pp / one.pp_s for one in measurements]
    writing = [len(one.token_s) / sum(one.token_s) for one in measurements]
    tests = [
        (f"pp{case.pp}", reading, 0.0),
        (f"tg{case.tg}", writing, token_s[int(len(token_s) * 0.99)] / median(token_s)),
    ]
    return [
        Row(
            engine=case.engine.value,
            model=case.model,
            kv=case.kv,
            backend=measurements[0].backend,
            threads=measurements[0].threads,
            test=test,
            depth=case.depth,
            tps=median(speeds),
            tps_sd=stdev(speeds) if len(speeds) > 1 else 0.0,
            ttft_s=median(one.pp_s + one.token_s[0] for one in measurements),
            kv_bytes=max(one.kv_bytes for one in measurements),
            peak_rss_bytes=max(one.peak_rss_bytes for one in measurements),
            p99_over_median=tail,
        )
        for test, speeds, tail in tests
    ]


def as_json(rows: Sequence[Row], environment: dict[str, Any]) -> dict[str, Any]:
    """The JSON contract of every bench section."""
    return {"schema": SCHEMA, "env": environment, "rows": [asdict(row) for row in rows]}
