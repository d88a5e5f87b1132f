"""All settings on one page."""

from collections.abc import Mapping
from dataclasses import fields
from typing import ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widgets import Input, Label, Select, Static

from app.chat.settings import Settings
from app.tui.screens.dialog import Dialog, closing
from kvcache.errors import EmberError

_ABOUT = {
    "theme": "colours",
    "model": "loaded at the start; empty: smollm2",
    "system": "system prompt of new chats",
    "temp": "0: the likeliest; empty: the model's",
    "top_p": "off at 1; empty: the model's",
    "top_k": "off at 0; empty: the model's",
    "min_p": "off at 0; empty: the model's",
    "repeat_penalty": "off at 1; empty: the model's",
    "seed": "-1 draws afresh",
    "max_tokens": "longest answer",
    "allow_loops": "on or off: go on in circles",
    "think": "auto, on or off: think first",
    "think_budget": "most tokens of thinking",
    "show_thinking": "on or off: thinking stands open",
    "lookup": "on or off: draft from the context",
    "room": "left for an answer; 0: max_tokens",
    "kv": "codecs of older tokens, or bits",
    "ctx": "tokens of the window, whole blocks; 0: all",
    "hot": "newest tokens kept unencoded",
    "keep": "never let go: system, or N tokens",
    "cache_store": "disk for chats, next start; 0: none",
    "panes": "on or off: side pane with the figures",
    "bell": "on or off: ring when done and unseen",
}
_KEYS = "Tab next · ^S save, ⏎ in a field too · Esc leave"


class SettingsScreen(Dialog[Settings | None]):
    """Ends with the changed settings, or None.

    models: what is recommended for the model, where the user has set nothing.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        *closing("f2"),
        Binding("ctrl+s", "save", "Save", show=False),
    ]

    def __init__(self, settings: Settings, themes: list[str], models: Mapping[str, float]) -> None:
        super().__init__()
        self._settings, self._themes, self._models = settings, themes, models
        # Held, not looked up: a key may be heard when some of them are already gone.
        self._controls = {each.name: self._control(each.name) for each in fields(settings)}
        self._hint = Static(markup=False, id="hint")
        self._keys = Static(_KEYS, markup=False, classes="keys")

    def compose(self) -> ComposeResult:
        with Vertical(classes="box tall") as box:
            box.border_title = "Settings"
            with VerticalScroll(can_focus=False):
                for name, control in self._controls.items():
                    with Horizontal(classes="setting"):
                        yield Label(name)
                        yield control
                        yield Static(_ABOUT[name], markup=False, classes="about")
            yield self._hint
            yield self._keys

    @on(events.DescendantFocus)
    def _explain(self, event: events.DescendantFocus) -> None:
        """Where there is no room beside a field, say below what the chosen one is."""
        if (name := event.widget.id) in _ABOUT:
            self._hint.update(f"{name}: {_ABOUT[name]}")

    def _control(self, name: str) -> Input | Select[str]:
        value = getattr(self._settings, name)
        if name == "theme":
            known = sorted({*self._themes, value})
            return Select(
                [(each, each) for each in known],
                value=value,
                allow_blank=False,
                id=name,
                compact=True,
            )
        if isinstance(value, bool):
            value = "on" if value else "off"
        if value is None:
            models = f"{self._models[name]:g}, the model's"
            return Input("", placeholder=models, id=name, compact=True)
        return Input(str(value), id=name, compact=True)

    def on_input_submitted(self) -> None:
        """Enter saves."""
        self.action_save()

    def action_save(self) -> None:
        """Check what was typed and end with it; say what is wrong and stay."""
        changed = self._settings
        try:
            for name, control in self._controls.items():
                changed = changed.with_text(name, str(control.value))
        except EmberError as error:
            self._keys.update(str(error))
            self._keys.add_class("wrong")
            return
        self.dismiss(changed)
