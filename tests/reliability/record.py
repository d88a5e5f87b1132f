"""A figure that a program tells of itself: a line of JSON in a file that several may write."""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from app.bench.environment import environment


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was tried, and what came of it.

    program: that tried it. what: the part of ember that was asked. count: how often, in units.
    faults: crashes, hangs, losses and wrong answers. detail: further figures, in words.
    command: that tries it again. commit: of the source then.
    """

    program: str
    what: str
    count: int
    unit: str
    faults: int
    command: str
    seconds: float = 0.0
    detail: str = ""
    commit: str = ""


def add_flag(parser: argparse.ArgumentParser) -> None:
    """`--record FILE`."""
    parser.add_argument(
        "--record", type=Path, metavar="FILE", help="add the figures to this file, a line each"
    )


def keep(path: Path | None, row: Row) -> None:
    """Add a row to the file, if one is named."""
    if path is not None:
        told = asdict(row) | {"commit": environment().get("commit", "")}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(told) + "\n")


def kept(path: Path) -> list[Row]:
    """The rows of a file, the newest of each program and part."""
    rows = [Row(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    return list({(row.program, row.what): row for row in rows}.values())
