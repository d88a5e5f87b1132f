"""Misuses the chat at random: `python -m tests.app.monkey MODEL [--seeds N]`.

Each seed puts two windows on the same folders through keys, mouse, pastes, commands, sizes
and signals at once. What must hold: no traceback, every typed word is seen, every sent one
saved, the database whole, the exit codes and the terminal as they should be. A seed that
fails is played again with fewer steps, and the shortest script that still fails is told.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from models.finding.fetch import fetch
from tests.app.monkey.play import Game, Outcome, own_cache, play
from tests.reliability.record import Row, add_flag, keep

_TRIES = 16


def main() -> int:
    """Play; 1 if anything went wrong."""
    arguments = _parser().parse_args()
    with own_cache() as cache:
        game = Game(
            model=_file(arguments.model),
            cache=cache,
            length=arguments.length,
            options=tuple(arguments.options),
        )
        if arguments.replay is not None:
            outcome = play(game, arguments.seed, _numbers(arguments.replay, game), tell=_say)
            _say(_line(arguments.seed, outcome, 0.0))
            return int(bool(outcome.faults))
        seeds = [arguments.seed] if arguments.seed is not None else range(*arguments.seeds)
        began = time.monotonic()
        failed = [each for each in seeds if not _passes(game, each, arguments.tries)]
    _say(f"{len(seeds) - len(failed)} of {len(seeds)} seeds passed; failed: {failed}")
    keep(
        arguments.record,
        Row(
            program="monkey",
            what=f"seeds {seeds[0]} to {seeds[-1]}",
            count=len(seeds),
            unit="seeds",
            faults=len(failed),
            detail=f"two windows of {game.length} steps each",
            command=f"python -m tests.app.monkey MODEL --seeds {seeds[0]}:{seeds[-1] + 1}",
            seconds=time.monotonic() - began,
        ),
    )
    return int(bool(failed))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.app.monkey",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="a model's name or file")
    parser.add_argument("--seeds", type=_range, default=(0, 200), metavar="[FROM:]N")
    parser.add_argument("--seed", type=int, help="this one alone")
    parser.add_argument(
        "--replay", nargs="?", const="", metavar="STEPS", help="tell each step; as in 3,7-9"
    )
    parser.add_argument("--length", type=int, default=24, help="steps of each window")
    parser.add_argument(
        "--tries", type=int, default=_TRIES, help="how often one that fails is played to shorten it"
    )
    parser.add_argument("options", nargs="*", help="of the chat, after --")
    add_flag(parser)
    return parser


def _passes(game: Game, seed: int, tries: int) -> bool:
    began = time.monotonic()
    outcome = play(game, seed)
    _say(_line(seed, outcome, time.monotonic() - began))
    if outcome.faults:
        steps = _shortened(game, seed, tries)
        again = f"--seed {seed} --length {game.length} --replay {_listed(steps)}"
        _say(f"python -m tests.app.monkey {game.model} {again}")
    return not outcome.faults


def _shortened(game: Game, seed: int, most_tries: int) -> list[int]:
    """As few steps as still fail, found by leaving out ever smaller parts."""
    steps = list(range(sum(len(each.actions) for each in game.scripts(seed))))
    size, tries = len(steps) // 2, 0
    while size and tries < most_tries:
        at = 0
        while at < len(steps) and tries < most_tries:
            fewer = steps[:at] + steps[at + size :]
            tries += 1
            if play(game, seed, fewer).faults:
                steps = fewer
            else:
                at += size
        size //= 2
    return steps


def _line(seed: int, outcome: Outcome, seconds: float) -> str:
    early = f", {outcome.ended_early} left by a key" if outcome.ended_early else ""
    again = f", {outcome.sent_again} sent again" if outcome.sent_again else ""
    said = f"seed {seed}: {seconds:.0f} s, keys seen within {outcome.slowest:.1f} s{early}{again}"
    return "\n  ".join([said, *outcome.faults])


def _file(model: str) -> Path:
    path = Path(model)
    return path.resolve() if path.is_file() else fetch(model)


def _range(text: str) -> tuple[int, int]:
    begin, _, end = text.rpartition(":")
    return int(begin or 0), int(end)


def _numbers(text: str, game: Game) -> list[int]:
    """Steps as they are listed; all of them for nothing."""
    if not text:
        return list(range(2 * game.length))
    numbers = list[int]()
    for part in text.split(","):
        begin, _, end = part.partition("-")
        numbers += range(int(begin), int(end or begin) + 1)
    return numbers


def _listed(steps: Sequence[int]) -> str:
    """As `_numbers` reads them."""
    runs = list[list[int]]()
    for each in steps:
        if runs and each == runs[-1][-1] + 1:
            runs[-1].append(each)
        else:
            runs.append([each])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
