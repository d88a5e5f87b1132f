"""Each target in turn, and a table of what was tried: `python -m tests.fuzz --help`."""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.child import COSTS, TRIED
from tests.fuzz.targets import TARGETS
from tests.reliability.record import Row, add_flag, keep

_RUNS = re.compile(r"^(?:stat::number_of_executed_units: *)?(\d+)(?: inputs|$)", re.MULTILINE)
_TAIL = 3000


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What came of a target. failure: the end of what was said, where an input was a fault.

    slowest, grown: seconds of the slowest input, bytes of memory that all took.
    """

    inputs: int
    seconds: float
    slowest: float = 0.0
    grown: int = 0
    failure: str = ""
    input: Path | None = None


def tried(name: str, *flags: str) -> Tried:
    """Run one target in a process; the input that ended it is kept."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ember-fuzz-") as folder:
        command = [sys.executable, "-m", "tests.fuzz.child", name, folder, *flags]
        done = subprocess.run(
            command, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        found = _RUNS.findall(done.stdout)
        inputs, seconds = int(found[-1]) if found else 0, time.monotonic() - began
        if done.returncode == 0:
            costs = json.loads((Path(folder) / COSTS).read_text())
            return Tried(
                inputs=inputs, seconds=seconds, slowest=costs["seconds"], grown=costs["bytes"]
            )
        faults = [*Path(folder).glob("crash-*"), *Path(folder).glob("timeout-*")]
        kept = Path(tempfile.mkdtemp(prefix=f"ember-{name}-")) / "input"
        for path in (*faults, Path(folder) / TRIED):
            if path.exists():
                shutil.copy(path, kept)
                break
        failure = f"ended with {done.returncode}\n{done.stdout[-_TAIL:]}"
        return Tried(inputs=inputs, seconds=seconds, failure=failure, input=kept)


def main() -> int:
    """Returns 1 where an input was a fault."""
    parser = argparse.ArgumentParser(description="Try mutated inputs on what reads foreign bytes.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=600, help="for each target (600)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--by-chance", action="store_true", help="without coverage")
    add_flag(parser)
    arguments = parser.parse_args()
    if unknown := set(arguments.targets) - set(TARGETS):
        parser.error(f"no target {min(unknown)}: there are {', '.join(TARGETS)}")
    flags = ["--seconds", str(arguments.seconds), "--seed", str(arguments.seed)]
    if arguments.by_chance:
        flags.append("--by-chance")
    faults = 0
    print("| target | inputs | seconds | faults |\n|---|---:|---:|---:|", flush=True)
    for name in arguments.targets or TARGETS:
        found = tried(name, *flags)
        faults += bool(found.failure)
        row = f"| {name} | {found.inputs:,} | {found.seconds:.0f} | {int(bool(found.failure))} |"
        print(row, flush=True)
        keep(arguments.record, _row(name, found, f"python -m tests.fuzz {name}"))
        if found.failure:
            print(f"{name}: {found.failure}\nthe input: {found.input}", file=sys.stderr)
    return int(faults > 0)


def _row(name: str, found: Tried, command: str) -> Row:
    return Row(
        program="fuzz",
        what=name,
        count=found.inputs,
        unit="inputs",
        seconds=found.seconds,
        faults=int(bool(found.failure)),
        detail=f"slowest {found.slowest:.2f} s, memory +{found.grown >> 20} MiB",
        command=command,
    )


if __name__ == "__main__":
    sys.exit(main())
