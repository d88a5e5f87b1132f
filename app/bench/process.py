"""Runs a case in a process of its own, with its engine's imports alone."""

import json
import os
import subprocess
import sys
from dataclasses import asdict

from app.bench.case import Case, Measurement
from kvcache.errors import EmberError


def command(case: Case) -> list[str]:
    """What measures a case and prints a `Measurement` as its last line."""
    fields = asdict(case) | {"engine": case.engine.value}
    return [sys.executable, "-m", "app.bench.measure", json.dumps(fields)]


def surroundings(case: Case) -> dict[str, str]:
    """The environment variables that the command runs with."""
    threads = {"EMBER_THREADS": str(case.threads)} if case.threads else {}
    return dict(os.environ) | threads


def measure(case: Case) -> Measurement:
    """Run one case. Raises EmberError with its last line."""
    done = subprocess.run(
        command(case), capture_output=True, text=True, env=surroundings(case), check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise EmberError(f"the measurement of {case.engine.value} failed: {lines[-1]}")
    return parse(done.stdout.splitlines()[-1])


def parse(line: str) -> Measurement:
    """A measurement from the line that the command printed."""
    found = json.loads(line)
    return Measurement(**found | {"token_s": tuple(found["token_s"])})
