"""The models: what each weighs, whether it fits, what its cache costs; load or fetch one."""

import asyncio
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from app import memory, units
from app.chat.controller import ChatController
from app.inert import inert_line
from app.memory import Fit, Memory
from app.model_list import Cost, ListedModel, cost_of, fit, listed
from app.model_names import title_of
from app.tui.screens.dialog import Dialog, closing
from app.tui.screens.hub import HubScreen, cache_cost
from app.tui.text.colours import MUTED

_KEYS = "⏎ load or fetch · / search the Hub · F8 stop a download · Esc close"
_TICK = 1 / 10
_STYLES = {Fit.FITS: "$success", Fit.TIGHT: "$warning", Fit.TOO_LARGE: "$error"}


class ModelsScreen(Dialog[str | None]):
    """Ends with the name of a model that is here, or None; downloads go on beside the chat."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *closing("ctrl+l"),
        Binding("f8", "stop", "Stop the download", show=False),
        Binding("slash", "hub", "Search the Hub", show=False),
    ]

    def __init__(self, chat: ChatController) -> None:
        super().__init__()
        self._chat = chat
        self._listed: list[ListedModel] = []
        self._costs: dict[str, Cost] = {}
        self._chooser = OptionList(markup=False)
        self._download = Static(markup=False, id="download")

    def compose(self) -> ComposeResult:
        with Vertical(classes="box tall") as box:
            box.border_title = "Models"
            yield self._chooser
            yield self._download
            yield Static(_KEYS, markup=False, classes="keys")

    def on_mount(self) -> None:
        """Look for models beside the screen."""
        self._chooser.focus()
        self.run_worker(self._find(), exit_on_error=False)
        self.set_interval(_TICK, self._show_download)

    async def _find(self) -> None:
        self._listed = await asyncio.to_thread(listed)
        for model in self._listed:
            if model.path is None:
                self._costs[model.spec] = cost_of(model)
        self._list()
        for model in self._listed:
            if model.path is not None:
                self._costs[model.spec] = await asyncio.to_thread(cost_of, model)
                self._list()

    @on(OptionList.OptionSelected)
    def _selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(self._listed[event.option_index].spec)

    def action_stop(self) -> None:
        """Stop the download that runs."""
        self._chat.models.stop_fetch()

    def action_hub(self) -> None:
        """Search the Hub; what is chosen there is this screen's result."""

        def done(spec: str | None) -> None:
            if spec is not None:
                self.dismiss(spec)

        self.app.push_screen(HubScreen(), done)

    def _list(self) -> None:
        chooser = self._chooser
        at = chooser.highlighted
        current = self._chat.model.spec if self._chat.model else ""
        here = memory.memory()
        chooser.set_options(
            Option(_line(each, self._costs.get(each.spec), here, is_loaded=each.spec == current))
            for each in self._listed
        )
        if self._listed:
            chooser.highlighted = min(at or 0, len(self._listed) - 1)

    def _show_download(self) -> None:
        fetching = self._chat.models.fetching
        line = self._download
        line.display = fetching is not None
        if fetching is None:
            return
        progress = fetching.progress
        if progress is None or not progress.total_bytes:
            line.update(f"fetching {inert_line(fetching.spec)}")
            return
        filled, empty = units.bar(progress.done_bytes / progress.total_bytes, 24)
        line.update(
            Content.assemble(
                f"{progress.label} ",
                (filled, "$accent"),
                (empty, MUTED),
                f" {fetching.in_words}",
            )
        )


def _line(model: ListedModel, cost: Cost | None, here: Memory, *, is_loaded: bool) -> Content:
    """Name, size, fit; cache cost, what loads it and what it is."""
    if cost is not None and cost.problem:
        return _refused(model, cost)
    verdict = None if model.path and cost is None else fit(model, cost, here)
    unknown = "reading" if model.path and cost is None else "size unknown"
    state = " · to fetch" if model.path is None else " · loaded" if is_loaded else ""
    first = Content.assemble(
        *_name_and_size(model, cost),
        (verdict.value, _STYLES[verdict]) if verdict else (unknown, MUTED),
        (state, "$accent"),
    )
    about = f"{cache_cost(cost)}{model.spec} · {model.remark}"
    return Content.assemble(first, "\n", (inert_line(about), MUTED))


def _refused(model: ListedModel, cost: Cost) -> Content:
    """A model that is of no use here, and the whole reason."""
    cannot = f"cannot run: {inert_line(cost.problem)}"
    about = (f"{inert_line(model.spec)} · ", MUTED)
    return Content.assemble(*_name_and_size(model, cost), "\n", about, (cannot, "$error"))


def _name_and_size(model: ListedModel, cost: Cost | None) -> tuple[str | tuple[str, str], ...]:
    """For people, once it is known."""
    name = cost.title if cost and cost.title else title_of(model.spec)
    size = "" if model.size is None else f"{units.file_size(model.size)} "
    return (inert_line(name), "bold"), "  ", size
