"""A table as data, and its two forms: for a terminal and in Markdown.

Knows nothing of what it shows; views make tables out of rows.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import rich.box
import rich.table
from rich.console import Console
from rich.text import Text

from app.inert import inert_line
from app.streams import styled

# Wide enough for every table, where no terminal tells its width.
_WIDTH = 164


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells as text.

    texts: how many leading columns are words, not numbers.
    note: one line below the table.
    """

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    texts: int = 1
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"got {len(row)} cells, expected {len(self.columns)}: {row}")


class Stdout(Console):
    """stdout, for tables."""

    def __init__(self) -> None:
        super().__init__(file=styled(sys.stdout), width=None if sys.stdout.isatty() else _WIDTH)

    def on_broken_pipe(self) -> NoReturn:
        """Go on with the BrokenPipeError; rich's own way is to exit as if the command failed."""
        raise


def for_terminal(table: Table) -> rich.table.Table:
    """The table as rich prints it; names in it are not ours, and no markup."""
    shown = rich.table.Table(
        title=_plain(table.title),
        caption=_plain(table.note) if table.note else None,
        title_justify="left",
        caption_justify="left",
        box=rich.box.SIMPLE_HEAD,
    )
    for index, name in enumerate(table.columns):
        shown.add_column(_plain(name), justify="left" if index < table.texts else "right")
    for row in table.rows:
        shown.add_row(*map(_plain, row))
    return shown


def _plain(text: str) -> Text:
    return Text(inert_line(text))


def print_line(console: Console, text: str, style: str | None = None) -> None:
    """Print a sentence as it is, as long as it is."""
    shown = inert_line(text)
    console.print(shown, style=style, highlight=False, markup=False, emoji=False, soft_wrap=True)


def to_markdown(table: Table) -> str:
    """The table as GitHub shows it, without its title."""
    rules = ["---" if index < table.texts else "---:" for index in range(len(table.columns))]
    lines = [_line(table.columns), _line(rules), *(_line(row) for row in table.rows)]
    return "\n".join([*lines, *(["", table.note] if table.note else [])])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
