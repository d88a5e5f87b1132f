"""Each stage in turn, ended at random moments: `python -m tests.kills --help`."""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from subprocess import TimeoutExpired

from tests.kills.killing import WELL, Killing
from tests.kills.stages import STAGES, place
from tests.reliability.record import Row, add_flag, keep


def main() -> int:
    """Returns 1 where something was lost, half or left."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument("--kills", type=int, default=30, help="of each stage (30)")
    parser.add_argument("--seed", type=int, default=0)
    add_flag(parser)
    arguments = parser.parse_args()
    if unknown := set(arguments.stages) - set(STAGES):
        parser.error(f"no stage {min(unknown)}: there are {', '.join(STAGES)}")
    faults = 0
    for name in arguments.stages or STAGES:
        began = time.monotonic()
        with (
            tempfile.TemporaryDirectory(prefix="ember-kills-") as folder,
            place(Path(folder), has_kernels=not STAGES[name].compiles) as at,
        ):
            killing, failure = Killing(at=at, name=name), ""
            try:
                killing.run(arguments.kills, Random(f"{arguments.seed} {name}"))
            except (AssertionError, ValueError, TimeoutExpired) as error:
                failure = f"{type(error).__name__}: {error}"
        faults += bool(failure)
        ways = ", ".join(f"{count} {kind}" for kind, count in sorted(killing.killed.items()))
        print(f"{name}: {ways} {failure}", flush=True)
        row = Row(
            program="kills",
            what=name,
            count=killing.killed.total() - killing.killed[WELL],
            unit="kills",
            seconds=time.monotonic() - began,
            faults=int(bool(failure)),
            detail=ways,
            command=f"python -m tests.kills {name}",
        )
        keep(arguments.record, row)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
