"""Are the figures of `bench speed` those that the system sees?

    python -m tests.app.bench.outside [MODEL]

A small parent starts the process of a case, takes its wall time and waits for it as
/usr/bin/time does, with `wait4`. Seconds of a prompt and of generated tokens are
differences between a short and a long case, so that loading drops out. Prints both sides;
exit code 1 where any differ by more than 5%, which on a busy machine they do.
"""

import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

from app.bench.engines.case import Case, EngineName, Measurement
from app.bench.engines.process import command, environment, parse
from app.bench.showing.words import percent, short
from kvcache.errors import EmberError
from models.finding.source import locate

TOLERANCE = 0.05
_TRIES = 3
# Not in this process: what waits for a child must be small, for a child's peak
# begins with that of the process it was made from.
_WAITER = """
import json, os, subprocess, sys, time
began = time.perf_counter()
child = subprocess.Popen(sys.argv[1:])
_, status, used = os.wait4(child.pid, 0)
seconds = time.perf_counter() - began
print(json.dumps([status, seconds, used.ru_maxrss]))
"""


@dataclass(frozen=True, kw_only=True)
class Observed:
    """One run: what it says, and what its parent saw."""

    said: Measurement
    wall_s: float
    peak_rss_bytes: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One figure, by the bench itself and from outside."""

    figure: str
    inside: float
    outside: float

    @property
    def off(self) -> float:
        """Inside relative to outside, less one."""
        return self.inside / self.outside - 1


def observe(case: Case) -> Observed:
    """Run a case and watch it. Raises EmberError where it fails."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", _WAITER, *command(case)],
        capture_output=True,
        text=True,
        env=environment(case.threads),
        check=False,
    )
    lines = done.stdout.splitlines()
    if len(lines) < 2:
        raise EmberError(f"the case failed: {done.stderr.strip().splitlines()[-1:]}")
    _, seconds, peak = json.loads(lines[-1])
    said = parse(lines[-2])
    assert said is not None
    unit = 1 if platform.system() == "Darwin" else 1024
    return Observed(said=said, wall_s=seconds, peak_rss_bytes=peak * unit)


def compare(case: Case) -> Iterator[Comparison]:
    """Memory of a long case, and the seconds that it takes more than shorter ones."""
    whole = observe(case)
    yield Comparison(
        figure="peak RSS, bytes",
        inside=whole.said.peak_rss_bytes,
        outside=whole.peak_rss_bytes,
    )
    fewer = observe(replace(case, tg=1))
    yield Comparison(
        figure=f"seconds of tokens 2 to {case.tg}",
        inside=sum(whole.said.token_s[1:]),
        outside=whole.wall_s - fewer.wall_s,
    )
    shorter = observe(replace(case, pp=case.pp // 8, tg=1))
    yield Comparison(
        figure=f"seconds of {case.pp - case.pp // 8} prompt tokens",
        inside=fewer.said.pp_s - shorter.said.pp_s,
        outside=fewer.wall_s - shorter.wall_s,
    )


def main() -> int:
    """Compare, more than once where the machine was busy; returns the exit code."""
    model = str(locate(sys.argv[1] if len(sys.argv) > 1 else "smollm2"))
    case = Case(
        engine=EngineName.EMBER,
        model=model,
        kv="f16",
        backend="auto",
        threads=0,
        depth=0,
        pp=4096,
        tg=768,
    )
    for _ in range(_TRIES):
        found = list(compare(case))
        for one in found:
            print(
                f"{one.figure}: {short(one.inside)} by the bench, "
                f"{short(one.outside)} from outside, {percent(one.off)}",
                flush=True,
            )
        if all(abs(one.off) <= TOLERANCE for one in found):
            return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
