"""The line above the prompt: what goes on, and what the draft costs."""

from rich.text import Text
from textual.content import Content
from textual.widget import Widget

from app import units
from app.chat.controller import ChatController
from app.chat.model_holder import Fetching
from app.chat.state import Phase
from app.inert import inert_line
from app.tui.text.colours import MUTED

_BAR = 14


class StatusLine(Widget):
    """Left: loading, reading, answering, or the new lines below. Right: the draft."""

    def __init__(self) -> None:
        super().__init__()
        self._content = Content("")

    def show(self, chat: ChatController, *, unseen: int, draft: str) -> None:
        """Update from the chat's state."""
        left = _activity(chat)
        if unseen:
            left = Content.assemble(
                left, "  " if left else "", (f"↓ {unseen} new lines · End follows", "$accent")
            )
        width = self.size.width - 2
        right = draft
        if chat.queued is not None:
            right = "1 question waits · " + right if right else "1 question waits"
        room = max(width - len(right) - 1, 0)
        plain = Text(left.plain)
        if plain.cell_len > room:
            left = left.truncate(room, ellipsis=True)
        gap = max(width - left.cell_length - len(right), 0)
        content = Content.assemble(" ", left, " " * gap, (right, MUTED), " ")
        if content != self._content or content.spans != self._content.spans:
            self._content = content
            self.refresh()

    def render(self) -> Content:
        return self._content


def _activity(chat: ChatController) -> Content:
    if chat.stopping:
        return Content.styled("stopping…", "$warning")
    match chat.phase:
        case Phase.LOADING:
            return _loading(chat)
        case Phase.READING:
            return _reading(chat)
        case Phase.ANSWERING:
            doing = "thinking" if chat.run and chat.run.is_thinking else "answering"
            return Content.styled(f"{doing} · Esc stops", MUTED)
        case Phase.MEASURING:
            return Content.styled("measuring the speed · Esc stops", MUTED)
        case _:
            fetching = chat.models.fetching
            return Content("") if fetching is None else _fetching(fetching)


def _loading(chat: ChatController) -> Content:
    progress = chat.models.progress
    if progress is None:
        return Content("loading the model")
    if not progress.total_bytes:
        return Content(f"{progress.label} · Esc stops")
    share = progress.done_bytes / progress.total_bytes
    return Content.assemble("loading ", *_bar(share), f" {share:.0%} · Esc stops")


def _fetching(fetching: Fetching) -> Content:
    progress = fetching.progress
    if progress is None or not progress.total_bytes:
        return Content(f"fetching {inert_line(fetching.spec)} · Esc stops")
    bar = _bar(progress.done_bytes / progress.total_bytes)
    return Content.assemble("fetching ", *bar, f" {fetching.in_words} · Esc stops")


def _reading(chat: ChatController) -> Content:
    prefill = chat.run.prefill if chat.run else None
    if prefill is None:
        return Content("reading the prompt · Esc stops")
    share = prefill.done / prefill.total
    left = ""
    computed = prefill.done - prefill.reused
    if computed > 0 and prefill.seconds > 0:
        rest = (prefill.total - prefill.done) * prefill.seconds / computed
        left = f", {units.seconds(rest)} left" if rest > 0.05 else ""
    return Content.assemble(
        "reading ",
        *_bar(share),
        f" {prefill.done}/{prefill.total}{left} · Esc stops",
    )


def _bar(share: float) -> tuple[tuple[str, str], tuple[str, str]]:
    filled, empty = units.bar(share, _BAR)
    return (filled, "$accent"), (empty, MUTED)
