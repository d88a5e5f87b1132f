"""Runs cases in a process of their own, with their engine's imports alone."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence

from app.bench.engines.case import Case, Measurement
from kvcache.errors import EmberError


def command(*cases: Case) -> list[str]:
    """What measures cases and prints a `Measurement` a line."""
    return [
        sys.executable,
        "-m",
        "app.bench.engines.measure",
        *(json.dumps(c.as_json()) for c in cases),
    ]


def environment(threads: int) -> dict[str, str]:
    """The environment variables that a command runs with; 0 threads leave it the default."""
    return dict(os.environ) | ({"EMBER_THREADS": str(threads)} if threads else {})


def measure(case: Case) -> Measurement:
    """Run one case. Raises EmberError with its last line."""
    (found,) = measure_each([case])
    if found is None:
        raise EmberError(f"{case.engine.value} does not run with {case.setting}")
    return found


def measure_each(cases: Sequence[Case]) -> list[Measurement | None]:
    """Run cases that differ in their setting alone, one after another in one process.

    None for a setting that cannot run. Raises EmberError with the process's last line.
    """
    done = subprocess.run(
        command(*cases),
        capture_output=True,
        text=True,
        env=environment(cases[0].threads),
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise EmberError(f"the measurement of {cases[0].engine.value} failed: {lines[-1]}")
    return [parse(line) for line in done.stdout.splitlines()[-len(cases) :]]


def parse(line: str) -> Measurement | None:
    """A measurement from a line that the command printed."""
    found = json.loads(line)
    return found and Measurement(**found | {"token_s": tuple(found["token_s"])})
