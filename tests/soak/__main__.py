"""Answers without end, a server's clients, and chats; what became of them.

    python -m tests.soak [answers] [server] [chats] [--minutes N] [--chats N] [--record FILE]

Ends with 1 where memory grew, answers slowed or one was wrong, and by an error where a number was
not finite or a chat was not what it must be.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from models.finding.source import locate
from tests.app.conftest import write_tiny
from tests.reliability.record import Row, add_flag, keep
from tests.soak.answering import soak
from tests.soak.mixed_load import mixed_load
from tests.soak.talking import Talking

_SHOWN, _MOST_SHOWN = 5, 1000


def main() -> int:
    """Returns the exit code."""
    soaks = {"answers": _answers, "server": _server, "chats": _chats}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", nargs="*", metavar="WHAT", help=f"{', '.join(soaks)} (all)")
    parser.add_argument("--minutes", type=float, default=30.0, help="of answers, and of clients")
    parser.add_argument("--chats", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the clients and the chats")
    parser.add_argument("--model", help="that answers; by default a tiny one of random weights")
    add_flag(parser)
    arguments = parser.parse_args()
    if unknown := set(arguments.what) - set(soaks):
        parser.error(f"no soak {min(unknown)}: there are {', '.join(soaks)}")
    faults = 0
    for name in arguments.what or soaks:
        with tempfile.TemporaryDirectory(prefix="ember-soak-") as folder:
            began = time.monotonic()
            row = soaks[name](arguments, Path(folder))
            row = replace(row, seconds=time.monotonic() - began)
        print(f"{row.what}: {row.detail}; {row.faults} faults", flush=True)
        keep(arguments.record, row)
        faults += row.faults
    return int(faults > 0)


def _answers(arguments: argparse.Namespace, folder: Path) -> Row:
    path = folder / "tiny.gguf"
    model = locate(arguments.model) if arguments.model else write_tiny(path)
    found = soak(model, seconds=60 * arguments.minutes)
    return Row(
        program="soak",
        what="answers",
        count=found.tokens,
        unit="tokens",
        faults=found.has_grown + found.has_slowed,
        detail=str(found),
        command="python -m tests.soak answers",
    )


def _server(arguments: argparse.Namespace, folder: Path) -> Row:
    found = mixed_load(folder, seconds=60 * arguments.minutes, seed=arguments.seed)
    for wrong in found.wrong[:_SHOWN]:
        print(wrong[:_MOST_SHOWN], file=sys.stderr)
    if found.faults:
        print(found.said, file=sys.stderr)
    return Row(
        program="soak",
        what="server",
        count=found.checked,
        unit="answers",
        faults=found.faults,
        detail=str(found),
        command="python -m tests.soak server",
    )


def _chats(arguments: argparse.Namespace, folder: Path) -> Row:
    talking = Talking(folder, arguments.seed)
    talking.run(arguments.chats)
    return Row(
        program="soak",
        what="chats",
        count=talking.chats,
        unit="chats",
        faults=0,
        detail=str(talking),
        command="python -m tests.soak chats",
    )


if __name__ == "__main__":
    sys.exit(main())
