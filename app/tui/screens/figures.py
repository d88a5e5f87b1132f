"""Speed and cache in large, for a closer look and for narrow terminals."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from app import units
from app.chat.controller import ChatController
from app.chat.state import Phase
from app.chat.terms import glossary
from app.chat.tier_counts import TierLog
from app.events import Completion, Drafts
from app.inert import inert_line
from app.service.contract import ModelInfo
from app.tui.screens.dialog import Page, closing
from app.tui.text.colours import MUTED
from app.tui.text.sparkline import sparkline
from app.tui.widgets.cache_pane import CachePane
from app.tui.widgets.columns import Columns
from app.tui.widgets.layer_map import LayerMap
from app.tui.widgets.side_pane import prompt_notes
from app.tui.widgets.tier_events import TierEvents
from kvcache.stats import sum_layers

_TICK = 1 / 4
_HEIGHT = 8


class SpeedScreen(Page):
    """The last minute as a large curve, and every figure of the last answer."""

    BINDINGS: ClassVar[list[BindingType]] = closing("f3,q,enter")

    def __init__(self, chat: ChatController) -> None:
        super().__init__()
        self._chat = chat
        self._page = Static(markup=False)

    def compose(self) -> ComposeResult:
        with VerticalScroll(classes="box") as box:
            box.border_title = "Speed"
            yield self._page

    def on_mount(self) -> None:
        """Keep it up to date."""
        self.set_interval(_TICK, self._show)

    def on_resize(self) -> None:
        """Fill the room there is."""
        self._show()

    def _show(self) -> None:
        speed, last, rate = self._chat.meter.speed(), self._chat.last, units.rate
        width = max(self._page.size.width - 8, 10)
        curve = sparkline(speed.bins, width, _HEIGHT)
        labels = [rate(speed.peak), *[""] * (_HEIGHT - 2), "0"]
        lines = [
            Content.assemble((f"{label:>6} ", MUTED), (line, "$accent"))
            for label, line in zip(labels, curve, strict=True)
        ]
        lines += [
            Content(""),
            Content(
                f"now {rate(speed.now)}   average {rate(speed.average)}   "
                f"peak {rate(speed.peak)}   p5 {rate(speed.p5)}   tok/s"
            ),
        ]
        if last is not None:
            lines += [Content("last answer"), *_completion(last)]
        if self._chat.phase is Phase.MEASURING:
            lines += [Content("measuring with another text…")]
        elif self._chat.look.result is not None:
            lines += [Content("measured by /bench"), *_completion(self._chat.look.result)]
        lines += _running(self._chat.model)
        self._page.update(Content("\n").join(lines))


def _completion(made: Completion) -> list[Content]:
    rate = units.rate
    reused = f", {made.reused_tokens} of them reused" if made.reused_tokens else ""
    return [
        Content(f"  prompt {made.prompt_tokens} tokens{reused}, {rate(made.prefill_tps)} tok/s"),
        Content(f"  answer {len(made.tokens)} tokens, {rate(made.decode_tps)} tok/s"),
        Content(f"  first token after {units.seconds(made.ttft_s)}"),
        *_drafted(made.drafts),
    ]


def _drafted(drafts: Drafts) -> list[Content]:
    if not drafts.tried:
        return []
    took = f"{drafts.accepted} of {drafts.tried} drafted tokens accepted"
    return [Content(f"  {took}, {drafts.tokens_per_step:.2f} tokens a step")]


def _running(model: ModelInfo | None) -> list[Content]:
    """What runs the model, and what there is to know about that."""
    if model is None:
        return []
    lines = [Content(f"{inert_line(model.name)} on the {model.backend} backend")]
    return lines + [Content.styled(f"! {inert_line(note)}", "$warning") for note in model.notes]


class CacheScreen(Page):
    """The cache pane, what its words mean, each layer, and what moved between tiers."""

    BINDINGS: ClassVar[list[BindingType]] = closing("f4,q,enter")

    def __init__(self, chat: ChatController, log: TierLog) -> None:
        super().__init__()
        self._chat, self._log = chat, log
        self._line, self._cache = Static(markup=False), CachePane()
        self._words, self._events = Columns("Words"), TierEvents()
        self._layers = LayerMap(joins_alike=False)
        self._box = VerticalScroll(classes="box")

    def compose(self) -> ComposeResult:
        with self._box as box:
            box.border_title = "KV cache"
            yield self._line
            yield self._cache
            yield self._words
            yield self._layers
            yield self._events

    def on_mount(self) -> None:
        """Keep it up to date; arrow keys scroll."""
        self._box.focus()
        self.set_interval(_TICK, self._show)

    def on_resize(self) -> None:
        """Fill the room there is."""
        self._show()

    def _show(self) -> None:
        model, layers = self._chat.model, self._chat.layer_stats()
        total = sum_layers(layers) if layers else None
        if model is not None and total is not None:
            self._line.update(
                f"{model.kv} · {model.backend} · {units.size(model.token_bytes)} a token · "
                f"{units.size(total.allocated_bytes)} allocated, "
                f"{units.size(total.fp16_bytes)} in f16"
            )
        self._cache.show(model, layers, prompt_notes(self._chat))
        self._words.show(glossary(self._chat))
        self._layers.show(model, layers)
        self._events.show(self._log.events)
