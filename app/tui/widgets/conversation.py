"""The messages, drawn line by line.

One widget for all of them: only the lines in view are composed, so a chat of
any length costs the same to scroll and to grow. Follows the end until the user
scrolls away from it.
"""

import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.cache import LRUCache
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import Reactive
from textual.scroll_view import ScrollView
from textual.selection import Selection
from textual.strip import Strip

from app.sessions.chat import ChatMessage, State
from app.tui.controller import Problem
from app.tui.text.entry import Entry
from app.tui.text.frame import card
from app.tui.text.inert import inert
from app.tui.text.lines import LineMaker
from app.tui.text.palette import Palette, without_background
from app.tui.tiers import Tier, tier_at
from kvcache.stats import CacheStats

_GUTTER = 3
_RIGHT_MARGIN = 1
# Rendering may take this share of the time between two renderings.
_RENDER_SHARE = 0.15
_MARKS = {Tier.COLD: "▒", Tier.EVICTED: "×"}

Placeholder = Callable[[LineMaker], list[Strip]]


class Conversation(ScrollView, can_focus=True):
    """Shows a list of messages; one of them may be selected with the keyboard."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "select(-1)", "Message above", show=False),
        Binding("down,j", "select(1)", "Message below", show=False),
        Binding("home,g", "top", "Start", show=False),
        Binding("end,G", "follow", "End", show=False),
    ]
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        f"conversation--{name}" for name in Palette.names()
    } | {"conversation--mark"}

    # Textual lays the whole screen out anew when this changes; here only the scroll bar does.
    virtual_size: Reactive[Size] = Reactive(Size(0, 0), layout=False, repaint=False)

    class CopyRequested(Message):
        """A code block's copy mark was clicked."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    class ActionRequested(Message):
        """Something clickable in the placeholder was clicked."""

        def __init__(self, action: str) -> None:
            super().__init__()
            self.action = action

    def __init__(self, placeholder: Placeholder) -> None:
        super().__init__()
        self.following = True
        self.selected: ChatMessage | None = None
        self._placeholder = placeholder
        self._entries: list[Entry] = []
        self._tops: list[int] = [0]
        self._below: list[Strip] = []
        self._problem: Problem | None = None
        self._maker: LineMaker | None = None
        self._stats: CacheStats | None = None
        self._base = Style.null()
        self._drawn: LRUCache[int, tuple[tuple[Strip, Segment, int, Style], Strip]] = LRUCache(512)
        self._seen = 0
        self._not_before = 0.0

    # -- what it shows --

    def show(
        self,
        messages: Sequence[ChatMessage],
        problem: Problem | None = None,
        *,
        at_once: bool = False,
    ) -> None:
        """Bring the view up to date with the messages, and a card below them.

        While an answer streams, a call may be skipped to keep the cost down;
        not with `at_once`.
        """
        if self._maker is None:
            return
        if self.following and self.scroll_offset.y < self.max_scroll_y:
            self.scroll_to(y=self.max_scroll_y, animate=False, immediate=True)
        began = time.monotonic()
        growing = bool(messages) and messages[-1].state is State.STREAMING
        known = [entry.message for entry in self._entries] == list(messages)
        if growing and known and not at_once and began < self._not_before:
            return
        changed = self._match(messages)
        for index, entry in enumerate(self._entries):
            if entry.sync(self._maker):
                changed = index if changed is None else min(changed, index)
        if problem != self._problem:
            self._problem = problem
            changed = len(self._entries) if changed is None else changed
        if changed is not None:
            self._place(changed)
        spent = time.monotonic() - began
        self._not_before = began + spent / _RENDER_SHARE

    def mark(self, stats: CacheStats | None) -> None:
        """Mark in the margin which lines' tokens are no longer hot."""
        if stats != self._stats:
            self._stats = stats
            self.refresh()

    @property
    def unseen(self) -> int:
        """Lines that have come below the view since the user scrolled away."""
        return 0 if self.following else max(self._height - self._seen, 0)

    @property
    def text_lines(self) -> list[str]:
        """What all lines say, without the margin."""
        own = [line.text.rstrip() for entry in self._entries for line in entry.lines]
        return own + [line.text.rstrip() for line in self._below]

    def refresh_placeholder(self) -> None:
        """What stands in an empty conversation has changed."""
        if self._maker is not None and not self._entries:
            self._place(0)

    def _match(self, messages: Sequence[ChatMessage]) -> int | None:
        """Make the entries those of the messages; returns the first that changed."""
        same = 0
        for entry, message in zip(self._entries, messages, strict=False):
            if entry.message is not message:
                break
            same += 1
        if same == len(self._entries) == len(messages):
            return None
        self._entries[same:] = [Entry(message) for message in messages[same:]]
        if self.selected not in messages:
            self.selected = None
        return same

    def _place(self, first: int) -> None:
        """Find where entries begin, from the first changed one on."""
        del self._tops[first + 1 :]
        for entry in self._entries[first:]:
            self._tops.append(self._tops[-1] + len(entry.lines))
        assert self._maker is not None
        self._below = [] if self._entries else self._placeholder(self._maker)
        if (problem := self._problem) is not None:
            style = self._maker.palette.error
            self._below += card(self._maker, problem.title, inert(problem.cause), style)
        height = self._height
        self.virtual_size = Size(self.size.width, height)
        if self.following:
            self._seen = height
            self.scroll_to(y=self.max_scroll_y, animate=False, immediate=True)
        same = self._entries[first].same if first < len(self._entries) else 0
        self._refresh_from(self._tops[first] + same)

    def _refresh_from(self, line: int) -> None:
        """Draw the lines in view from `line` of the whole on."""
        at = max(line - self.scroll_offset.y, 0)
        size = self.scrollable_content_region.size
        if at < size.height:
            self.refresh(Region(0, at, size.width, size.height - at))

    @property
    def _height(self) -> int:
        return self._tops[-1] + len(self._below)

    # -- size and style --

    def notify_style_update(self) -> None:
        """The theme has changed."""
        super().notify_style_update()
        self._rebuild()

    def on_resize(self) -> None:
        """Wrap everything anew."""
        self._rebuild()

    def _rebuild(self) -> None:
        width = self.scrollable_content_region.width - _GUTTER - _RIGHT_MARGIN
        if width < 1 or not self.is_attached:
            return
        self._maker = LineMaker(width, self._palette())
        self.show([entry.message for entry in self._entries], self._problem, at_once=True)
        self._place(0)

    def _palette(self) -> Palette:
        styles = {
            name: without_background(self.get_component_rich_style(f"conversation--{name}"))
            for name in Palette.names()
        }
        return Palette(**styles, dark=self.app.current_theme.dark, ansi=self.app.native_ansi_color)

    # -- scrolling and selecting --

    def watch_virtual_size(self, size: Size) -> None:
        """Fit the scroll bar to the lines there are."""
        self._scroll_update(size)

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        following = new_value >= self.max_scroll_y - 0.5
        if following != self.following:
            self.following = following
            self._seen = self._height

    def action_follow(self) -> None:
        """Go to the end and stay there."""
        self.following = True
        self.scroll_to(y=self.max_scroll_y, animate=False, immediate=True)

    def action_top(self) -> None:
        """Go to the first message."""
        self.scroll_to(y=0, animate=False, immediate=True)

    def action_select(self, step: int) -> None:
        """Select the message above or below."""
        messages = [entry.message for entry in self._entries]
        if not messages:
            return
        if self.selected is None:
            at = len(messages) - 1
        else:
            at = min(max(messages.index(self.selected) + step, 0), len(messages) - 1)
        self.selected = messages[at]
        self._show_entry(at)
        self.refresh()

    def _show_entry(self, at: int) -> None:
        top, bottom = self._tops[at], self._tops[at + 1]
        view = self.scrollable_content_region.height
        first, last = self.scroll_offset.y, self.scroll_offset.y + view
        if top < first or bottom - top >= view:
            self.scroll_to(y=top, animate=False, immediate=True)
        elif bottom > last:
            self.scroll_to(y=bottom - view, animate=False, immediate=True)

    def on_blur(self) -> None:
        """A selection is for keys; they go elsewhere now."""
        self.selected = None
        self.refresh()

    def on_click(self, event: events.Click) -> None:
        """Copy marks and links of the placeholder."""
        meta = event.style.meta
        if "copy" in meta:
            self.post_message(self.CopyRequested(meta["copy"]))
        elif "ember" in meta:
            self.post_message(self.ActionRequested(meta["ember"]))

    # -- drawing --

    def render_lines(self, crop: Region) -> list[Strip]:
        # The same for all lines, and dear to ask for.
        self._base = self.rich_style
        return super().render_lines(crop)

    def render_line(self, y: int) -> Strip:
        width = self.scrollable_content_region.width
        at = y + self.scroll_offset.y
        if at >= self._height:
            return Strip.blank(width, self._base)
        if at >= self._tops[-1]:
            gutter, line = Segment(" " * _GUTTER), self._below[at - self._tops[-1]]
        else:
            index = bisect_right(self._tops, at) - 1
            entry, local = self._entries[index], at - self._tops[index]
            gutter, line = self._gutter(index, entry, local), entry.lines[local]
        if self.text_selection is not None:
            return self._composed(gutter, line, width, self._base, at)
        # A line that only moves up with the others is not composed again.
        known = self._drawn.get(at)
        wanted = (line, gutter, width, self._base)
        if known is None or known[0] != wanted:
            known = wanted, self._composed(gutter, line, width, self._base, at)
            self._drawn[at] = known
        return known[1]

    def _composed(self, gutter: Segment, line: Strip, width: int, base: Style, at: int) -> Strip:
        strip = Strip.join([Strip([gutter]), line]).crop_extend(0, width, None)
        strip = self._with_selection(strip, at)
        return strip.apply_style(base).apply_offsets(0, at)

    def _gutter(self, index: int, entry: Entry, local: int) -> Segment:
        """Tier mark and who speaks; a bar beside the selected message."""
        palette = self._maker.palette if self._maker else Palette()
        if entry.message is self.selected and local < len(entry.lines) - 1:
            return Segment("▌  " if local else f"▌{_glyph(entry)} ", palette.accent)
        mark = self._tier_mark(index, entry, local)
        glyph = _glyph(entry) if local == 0 else " "
        style = palette.muted if mark != " " or not entry.is_answer else palette.accent
        return Segment(f"{mark}{glyph} ", style)

    def _tier_mark(self, index: int, entry: Entry, local: int) -> str:
        """Where the tokens of a line are, its share of the message's taken by its place."""
        end = entry.message.end
        if self._stats is None or end is None or local >= entry.body:
            return " "
        before = (self._entries[at].message.end for at in range(index - 1, -1, -1))
        start = next((each for each in before if each is not None), 0)
        position = start + (end - start) * (local + 0.5) / entry.body
        return _MARKS.get(tier_at(position, self._stats), " ")

    # -- selecting text with the mouse --

    @property
    def allow_select(self) -> bool:
        return True

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        lines = [f"{' ' * _GUTTER}{line}" for line in self.text_lines]
        text = selection.extract("\n".join(lines))
        margin = " " * _GUTTER
        return "\n".join(line.removeprefix(margin).rstrip() for line in text.split("\n")), "\n"

    def selection_updated(self, selection: Selection | None) -> None:
        self.refresh()

    def _with_selection(self, strip: Strip, at: int) -> Strip:
        selection = self.text_selection
        span = selection.get_span(at) if selection is not None else None
        if span is None:
            return strip
        start, end = span
        end = strip.cell_length if end == -1 else min(end, strip.cell_length)
        if start >= end:
            return strip
        style = self.screen.get_component_rich_style("screen--selection")
        before, chosen, after = strip.crop(0, start), strip.crop(start, end), strip.crop(end)
        chosen = Strip([Segment(s.text, (s.style or Style()) + style) for s in chosen])
        return Strip.join([before, chosen, after])


def _glyph(entry: Entry) -> str:
    return "◆" if entry.is_answer else "❯"
