"""The messages, drawn line by line.

One widget for all of them: only the lines in view are composed, so a chat of
any length costs the same to scroll and to grow. Follows the end until the user
scrolls away from it.
"""

import time
from collections.abc import Callable, Sequence
from typing import ClassVar

from rich.segment import Segment
from textual import events
from textual.geometry import Offset, Region, Size
from textual.message import Message
from textual.reactive import Reactive
from textual.scroll_view import ScrollView
from textual.selection import Selection
from textual.strip import Strip

from app.chat.state import Problem
from app.inert import inert
from app.sessions.chat import ChatMessage, State
from app.tui.text.colours import Palette, without_background
from app.tui.text.drawn import DrawnLines
from app.tui.text.entry import FIGURES, VARIANT
from app.tui.text.frame import card
from app.tui.text.lines import LineMaker
from app.tui.text.roll import Roll
from app.tui.text.selected import selected_text, with_selection, word_at
from app.tui.text.thought import META
from app.tui.widgets import margin
from kvcache.stats import CacheStats

_RIGHT_MARGIN = 1
# Rendering may take this share of the time between two renderings.
_RENDER_SHARE = 0.15
# How long a change of width may work on what is near, and each later call on the rest.
_FIRST_SECONDS, _NEXT_SECONDS = 0.03, 0.008

Placeholder = Callable[[LineMaker], list[Strip]]


class Conversation(ScrollView, can_focus=False):
    """Shows a list of messages; one of them may be selected.

    Takes no keys: what is typed is for the prompt, whatever was clicked before.
    """

    COMPONENT_CLASSES: ClassVar[set[str]] = {f"conversation--{name}" for name in Palette.names()}

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

    class VariantRequested(Message):
        """An arrow beside a message's number was clicked."""

        def __init__(self, message: ChatMessage, step: int) -> None:
            super().__init__()
            self.message, self.step = message, step

    def __init__(
        self, placeholder: Placeholder, opens_thoughts: Callable[[], bool] = lambda: False
    ) -> None:
        super().__init__()
        self.following = True
        self.selected: ChatMessage | None = None
        self._placeholder = placeholder
        self._roll = Roll(opens_thoughts)
        self._below: list[Strip] = []
        self._problem: Problem | None = None
        self._maker: LineMaker | None = None
        self._stats: CacheStats | None = None
        self._drawn = DrawnLines()
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
            self._to_end()
        began = time.monotonic()
        growing = bool(messages) and messages[-1].state is State.STREAMING
        known = self._roll.messages == list(messages)
        if growing and known and not at_once and began < self._not_before:
            return
        changed = self._roll.show(messages, self._maker)
        if self.selected not in messages:
            self.selected = None
        if problem != self._problem:
            self._problem = problem
            changed = self._roll.height if changed is None else changed
        if changed is not None:
            self._fit(changed)
        self._freshen(_NEXT_SECONDS)
        self._not_before = began + (time.monotonic() - began) / _RENDER_SHARE

    def mark(self, stats: CacheStats | None) -> None:
        """Mark in the margin which lines' tokens are no longer hot."""
        moved = stats is None or self._stats is None or _edges(stats) != _edges(self._stats)
        changed, self._stats = moved and stats != self._stats, stats
        if changed:
            self.refresh()

    @property
    def unseen(self) -> int:
        """Lines that have come below the view since the user scrolled away."""
        return 0 if self.following else max(self._height - self._seen, 0)

    @property
    def text_lines(self) -> list[str]:
        """What all lines say, without the margin."""
        return self._roll.text_lines() + [line.text.rstrip() for line in self._below]

    def refresh_placeholder(self) -> None:
        """What stands in an empty conversation has changed."""
        if self._maker is not None and not self._roll.entries:
            self._fit(0)

    def _fit(self, first: int) -> None:
        """Fit the scroll bar and the view to lines that changed from `first` on."""
        assert self._maker is not None
        self._below = [] if self._roll.entries else self._placeholder(self._maker)
        if (problem := self._problem) is not None:
            style = self._maker.palette.error
            self._below += card(self._maker, problem.title, inert(problem.cause), style)
        self.virtual_size = Size(self.size.width, self._height)
        if self.following:
            self._seen = self._height
            self._to_end()
        at = max(first - self.scroll_offset.y, 0)
        size = self.scrollable_content_region.size
        if at < size.height:
            self.refresh(Region(0, at, size.width, size.height - at))

    def _freshen(self, seconds: float) -> None:
        """Make lines that are not up to date, without moving what is in view."""
        assert self._maker is not None
        near = self.scroll_offset.y
        index = self._roll.index_at(near)
        centre = near + self.scrollable_content_region.height // 2
        into = near - self._roll.span(index)[0] if self._roll.entries else 0
        unseen = self.unseen
        changed = self._roll.freshen(self._maker, centre, seconds)
        if changed is None:
            return
        self._fit(changed)
        # Lines that were broken otherwise are not new.
        self._seen = self._height - unseen
        if not self.following:
            top, bottom = self._roll.span(index)
            self.scroll_to(y=min(top + into, bottom), animate=False, immediate=True)

    @property
    def _height(self) -> int:
        return self._roll.height + len(self._below)

    # -- size and style --

    def on_mount(self) -> None:
        """Take the colours of another theme, once all styles have them."""
        self.app.theme_changed_signal.subscribe(self, lambda _theme: self._rebuild())

    def on_resize(self) -> None:
        """Wrap everything anew, what is in view first; of another height nothing."""
        if self._maker is None or self._width != self._maker.width:
            self._rebuild()
        else:
            self._fit(0)

    @property
    def _width(self) -> int:
        return self.scrollable_content_region.width - margin.WIDTH - _RIGHT_MARGIN

    def _rebuild(self) -> None:
        if self._width < 1 or not self.is_attached:
            return
        unseen = self.unseen
        self._maker = LineMaker(self._width, self._palette())
        self._freshen(_FIRST_SECONDS)
        self._fit(0)
        self._seen = self._height - unseen

    def _palette(self) -> Palette:
        styles = {
            name: without_background(self.get_component_rich_style(f"conversation--{name}"))
            for name in Palette.names()
        }
        background = self.background_colors[1]
        return Palette(
            **styles,
            background=None if background.ansi is not None else background,
            dark=self.app.current_theme.dark,
            ansi=self.app.native_ansi_color,
        )

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
        self._to_end()

    def action_top(self) -> None:
        """Go to the first message."""
        self.scroll_to(y=0, animate=False, immediate=True)

    def action_select(self, step: int) -> None:
        """Select the message above or below."""
        messages = self._roll.messages
        if not messages:
            return
        if self.selected is None:
            at = len(messages) - 1
        else:
            at = min(max(messages.index(self.selected) + step, 0), len(messages) - 1)
        self.select(messages[at])

    def select(self, message: ChatMessage) -> None:
        """Select a message that is shown."""
        self.selected = message
        self._bring_into_view(self._roll.messages.index(message))
        self.refresh()

    def toggle_thought(self, index: int | None = None) -> bool:
        """Open or fold thinking: of an entry, the selected message, or the last that has any.

        Returns whether there is any.
        """
        if index is None and self.selected is not None:
            index = self._roll.messages.index(self.selected)
        elif index is None:
            index = self._roll.last_thought()
        if index is None or self._maker is None or not self._roll.entries[index].message.thought:
            return False
        self._fit(self._roll.toggle_thought(self._maker, index))
        if self._roll.messages[index].state is not State.STREAMING:
            self._bring_into_view(index)
        return True

    def _to_end(self) -> None:
        self.scroll_to(y=self.max_scroll_y, animate=False, immediate=True)

    def _bring_into_view(self, index: int) -> None:
        top, bottom = self._roll.span(index)
        view = self.scrollable_content_region.height
        first = self.scroll_offset.y
        if top < first or bottom - top >= view:
            self.scroll_to(y=top, animate=False, immediate=True)
        elif bottom > first + view:
            self.scroll_to(y=bottom - view, animate=False, immediate=True)

    def unselect(self) -> bool:
        """Select no message; False where none was."""
        had, self.selected = self.selected is not None, None
        self.refresh()
        return had

    def on_click(self, event: events.Click) -> None:
        """Marks and links; elsewhere two clicks select a word, three a message."""
        meta = event.style.meta
        if event.chain > 1:
            event.prevent_default()  # Textual's, which select all messages
        if "copy" in meta:
            self.post_message(self.CopyRequested(meta["copy"]))
        elif META in meta:
            self.toggle_thought(self._roll.index_at(event.y + self.scroll_offset.y))
        elif FIGURES in meta and self._maker is not None:
            index = self._roll.index_at(event.y + self.scroll_offset.y)
            self._fit(self._roll.toggle_figures(self._maker, index))
        elif VARIANT in meta:
            index = self._roll.index_at(event.y + self.scroll_offset.y)
            self.post_message(self.VariantRequested(self._roll.messages[index], meta[VARIANT]))
        elif "ember" in meta:
            self.post_message(self.ActionRequested(meta["ember"]))
        elif event.chain > 1:
            self._select_around(event.x, event.y + self.scroll_offset.y, all_of_it=event.chain > 2)

    def _select_around(self, column: int, line: int, *, all_of_it: bool) -> None:
        """Select the word there, or the message."""
        lines = self.text_lines
        if not self._roll.messages or line >= len(lines):
            return
        if all_of_it:
            top, bottom = self._roll.span(self._roll.index_at(line))
            found = Selection(Offset(0, top), Offset(self.size.width, bottom - 1))
        elif word := word_at(lines[line], column, margin.WIDTH):
            found = Selection(Offset(word[0], line), Offset(word[1], line))
        else:
            return
        self.screen.selections = {self: found}

    @property
    def allow_select(self) -> bool:
        return True

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        return selected_text(self.text_lines, selection, margin.WIDTH), "\n"

    def selection_updated(self, selection: Selection | None) -> None:
        self.refresh()

    # -- drawing --

    def render_lines(self, crop: Region) -> list[Strip]:
        # Without Textual's cache of a widget's lines: that one knows them by their place on the
        # screen, so while the text moves up it would draw all of them anew.
        background = self.background_colors[1]
        width = self.region.width
        self._drawn.prepare(width, self.rich_style, self.get_line_filters(), background)
        lines = [self.render_line(y) for y in crop.line_range]
        left, right = crop.column_span
        return lines if crop.width == width else [line.crop(left, right) for line in lines]

    def render_line(self, y: int) -> Strip:
        at = y + self.scroll_offset.y
        if at >= self._height:
            return self._drawn.once(at, Strip([]))
        left, line = self._line(at)
        selection = self.text_selection
        if selection is None:
            return self._drawn.line(at, left, line)
        style = self.screen.get_component_rich_style("screen--selection")
        whole = Strip.join([Strip([left]), line])
        return self._drawn.once(at, with_selection(whole, selection, at, style))

    def _line(self, at: int) -> tuple[Segment, Strip]:
        """A line of the whole and its margin."""
        if at >= self._roll.height:
            return Segment(" " * margin.WIDTH), self._below[at - self._roll.height]
        assert self._maker is not None
        index = self._roll.index_at(at)
        entry, local = self._roll.entries[index], at - self._roll.span(index)[0]
        palette = self._maker.palette
        if entry.message is self.selected and local < len(entry.lines) - 1:
            return margin.selected_margin(self._roll, index, local, palette), entry.lines[local]
        left = margin.margin(self._roll, index, local, self._stats, palette)
        return left, entry.lines[local]


def _edges(stats: CacheStats) -> tuple[int, int, int]:
    """What the marks depend on: hot tokens have none."""
    return stats.sink, stats.evicted, stats.cold
