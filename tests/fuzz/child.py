"""One target in a process of its own, which an input may end: coverage-guided, or by chance.

    python -m tests.fuzz.child TARGET FOLDER [--seconds N] [--inputs N] [--seed N] [--by-chance]

FOLDER: where the input lies that is being tried, what the costliest took so far, and, with
atheris, what was found worth trying.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from random import Random

from tests.fuzz.limits import Limited

CORPUS = Path(__file__).parent / "corpus"
TRIED, COSTS = "tried", "costs.json"
_PACKAGES = ["app", "kvcache", "models"]
# Where networks answer, instruments in their code keep 100 KB for each input, which is not ember's.
_FEWER = {"piece": ["app"]}
_LONGEST = 1 << 20


def main() -> None:
    """Try inputs; ends with 0 after the last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("target")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--inputs", type=int, default=0, help="end after so many; 0: never")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--by-chance", action="store_true")
    arguments = parser.parse_args()
    if arguments.by_chance or find_spec("atheris") is None:
        _by_chance(arguments)
    else:
        _by_coverage(arguments)


def _by_chance(arguments: argparse.Namespace) -> None:
    from tests.fuzz.targets import TARGETS

    target, rng = TARGETS[arguments.target], Random(arguments.seed)
    limited, good = Limited(target.read, seconds=target.seconds), _good(arguments.target)
    costed = _telling(limited, arguments.folder)
    deadline = time.monotonic() + arguments.seconds
    mutants = (target.mutate(rng.choice(good), rng) for _ in iter(int, 1))
    for number, data in enumerate(chain(good, mutants)):
        if time.monotonic() > deadline or number == arguments.inputs + len(good) > len(good):
            break
        (arguments.folder / TRIED).write_bytes(data)
        costed(data)
    print(f"{limited.refused + limited.answered} inputs, {limited.refused} refused", flush=True)


def _by_coverage(arguments: argparse.Namespace) -> None:
    import atheris

    with atheris.instrument_imports(include=_FEWER.get(arguments.target, _PACKAGES)):
        from tests.fuzz.targets import TARGETS
    target = TARGETS[arguments.target]
    limited = Limited(target.read, seconds=2 * target.seconds)  # instrumented code is slower
    seeds = arguments.folder / "corpus"
    seeds.mkdir(exist_ok=True)
    for number, data in enumerate(_good(arguments.target)):
        (seeds / f"good-{number}").write_bytes(data)

    def changed(data: bytes, most: int, seed: int) -> bytes:
        rng = Random(seed)
        mutate = target.mutate if rng.random() < 0.5 else atheris_mutate
        return mutate(data, rng)[:most]

    def atheris_mutate(data: bytes, _rng: Random) -> bytes:
        found: bytes = atheris.Mutate(data, _LONGEST)
        return found

    flags = (
        f"-max_total_time={arguments.seconds:.0f}",
        f"-max_len={_LONGEST}",
        f"-seed={arguments.seed + 1}",
        f"-runs={arguments.inputs or -1}",
        f"-artifact_prefix={arguments.folder}/",
        "-rss_limit_mb=0",  # `Limited` looks at memory
        "-print_final_stats=1",
        "-verbosity=1",
    )
    atheris.Setup(
        [sys.argv[0], *flags, str(seeds)],
        _telling(limited, arguments.folder),
        custom_mutator=changed,
    )
    atheris.Fuzz()


def _telling(limited: Limited, folder: Path) -> Callable[[bytes], None]:
    """The same, and a file of what the costliest took, since libFuzzer ends the process itself."""

    def read(data: bytes) -> None:
        before = limited.slowest, limited.grown
        limited(data)
        if before != (limited.slowest, limited.grown):
            costs = {"seconds": limited.slowest, "bytes": limited.grown}
            (folder / COSTS).write_text(json.dumps(costs))

    return read


def _good(name: str) -> list[bytes]:
    """Good inputs, and those that once were a fault."""
    from tests.fuzz.targets import TARGETS

    known = sorted(path for path in (CORPUS / name).glob("*") if path.is_file())
    return [*TARGETS[name].seeds(), *(path.read_bytes() for path in known)]


if __name__ == "__main__":
    main()
