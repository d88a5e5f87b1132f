"""The glossary as a table."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text
from textual.widgets import Static

from app.chat.terms import Term
from app.inert import inert_line


class Glossary(Static):
    """A line or more for each word: the word, its value, its meaning."""

    def __init__(self) -> None:
        super().__init__()
        self.border_title = "Words"
        self._shown: Sequence[Term] = ()

    def show(self, terms: Sequence[Term]) -> None:
        """Update the values."""
        if terms != self._shown:
            self._shown = terms
            self.update(_table(terms))


def _table(terms: Sequence[Term]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0), expand=True)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(max_width=20, overflow="fold")
    table.add_column(ratio=1)
    for each in terms:
        table.add_row(Text(each.word), Text(inert_line(each.value)), Text(each.meaning))
    return table
