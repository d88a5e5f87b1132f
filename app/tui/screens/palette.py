"""Every command that needs no argument, and every theme, found by name or by what it does.

In place of Textual 8.2's palette, which raises when it is closed while it searches.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from textual.binding import BindingType
from textual.content import Content

from app.chat.command import Command
from app.tui.screens.dialog import closing
from app.tui.screens.search import SearchScreen
from app.tui.text.colours import MUTED

_COMMAND_WIDTH = 12


class Entry(NamedTuple):
    """A command as it would be typed, without its slash."""

    name: str
    argument: str
    about: str

    @property
    def text(self) -> str:
        """What is searched."""
        return f"{self.command}  {self.about}"

    @property
    def command(self) -> str:
        """What would be typed."""
        return f"/{self.name} {self.argument}".rstrip()


class PaletteScreen(SearchScreen[Entry | None, Entry]):
    """Ends with the command to run, or None."""

    TITLE = "Commands"
    PLACEHOLDER = "search commands"
    KEYS = "⏎ run · Esc close"
    BINDINGS: ClassVar[list[BindingType]] = [*closing("ctrl+p")]

    def __init__(
        self, commands: Sequence[Command[Any]], themes: Sequence[str], search: str = ""
    ) -> None:
        super().__init__(search)
        alone = [each for each in commands if each.needs_nothing]
        self._entries = [Entry(each.name, "", each.about) for each in alone]
        self._entries += [Entry("theme", name, "change the colours") for name in themes]

    def find(self, text: str) -> Sequence[Entry]:
        words = text.lower().lstrip("/").split()
        found = [each for each in self._entries if all(word in each.text.lower() for word in words)]
        first = words[0] if words else ""
        return sorted(found, key=lambda each: not each.name.startswith(first))

    def line(self, item: Entry) -> Content:
        command = item.command.ljust(_COMMAND_WIDTH)
        return Content.assemble((command, "bold"), "  ", (item.about, MUTED))

    def result(self, item: Entry) -> Entry | None:
        return item
