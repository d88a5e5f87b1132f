"""The saved prompts and personas: search, use, delete."""

from collections.abc import Sequence
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.content import Content

from app.chat.personas import Persona, Personas
from app.inert import inert_line
from app.tui.screens.search import SearchScreen
from app.tui.text.colours import MUTED
from kvcache.errors import short

_MOST_ASKED = 200


class PromptsScreen(SearchScreen[str | None, Persona]):
    """Ends with the name of the one to use, or None."""

    TITLE = "Prompts and personas"
    PLACEHOLDER = "search names and texts"
    KEYS = "⏎ use · F8 delete · Esc close · /prompt save NAME keeps this chat's"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("f8", "delete", "Delete", show=False)]

    def __init__(self, personas: Personas) -> None:
        super().__init__()
        self._personas = personas

    def find(self, text: str) -> Sequence[Persona]:
        wanted, found = text.lower(), self._personas.all()
        return [each for each in found if wanted in f"{each.name} {each.about}".lower()]

    def line(self, item: Persona) -> Content:
        about, colour = inert_line(item.about), "$error" if item.problem else MUTED
        return Content.assemble((inert_line(item.name), "bold"), (f"\n  {about}", colour))

    def result(self, item: Persona) -> str | None:
        return item.name

    def action_delete(self) -> None:
        """Forget the chosen one, once that is confirmed."""
        chosen = self.chosen
        if chosen is None:
            return

        def delete() -> None:
            for notice in self._personas.remove(chosen.name):
                self.notify(notice, markup=False)

        text = f"“{inert_line(chosen.name)}”: {short(inert_line(chosen.about), _MOST_ASKED)}"
        self.ask_to_delete("prompt", text, delete)
