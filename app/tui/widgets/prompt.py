"""Where the user types: grows with the text, Enter sends, Ctrl-J breaks the line."""

import time
from collections.abc import Callable
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Offset
from textual.widgets import TextArea
from textual.widgets.text_area import Selection

from app.inert import inert
from app.tui.text.selected import WORD

# A longer paste becomes an attachment: nobody edits that much in eight lines.
_MAX_PASTE = 4000
_REST_SECONDS = 0.7
_WHEN_EMPTY = {"home", "end", "left", "right", "tab", "ctrl+d"}
_ALWAYS = {"pageup", "pagedown", "ctrl+up"}
# No binding with priority: that would overtake the letters typed just before.
_NEWLINE = {"ctrl+j", "shift+enter"}
_WHILE_SUGGESTING = {"up", "down", "tab"}
_WHILE_SELECTING = {"up", "down"}


class Prompt(TextArea):
    """A text area for one question.

    suggesting: completions are shown, so that some keys are for them.
    selects: asked whether a message is selected, which arrows then move on an empty prompt.
    takes_back: asked whether Esc puts a question back here, which what is typed next follows.
    submit: sends what is typed. choose: is given the keys of completions. recall: an arrow leads
    out of the text, to what was asked before (-1), or after (1). attach: is given what is too long
    to be edited here. pass_on: a key that is for the conversation, always or while the prompt is
    empty. All are called, that nothing which is typed next comes before them, as it would before a
    message.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+underscore", "undo", "Undo", show=False),
        Binding("ctrl+c", "screen.interrupt", "Copy, stop or quit", show=False, priority=True),
        Binding("ctrl+y", "screen.command('copy')", "Copy the answer", show=False, priority=True),
    ]

    def __init__(
        self,
        *,
        selects: Callable[[], bool],
        takes_back: Callable[[], bool],
        submit: Callable[[], None],
        choose: Callable[[str], None],
        recall: Callable[[int], None],
        attach: Callable[[str], None],
        pass_on: Callable[[str], None],
    ) -> None:
        super().__init__(
            soft_wrap=True,
            show_line_numbers=False,
            compact=True,
            highlight_cursor_line=False,
            placeholder="Ask, / commands, @ file",
            tab_behavior="focus",
        )
        self.suggesting, self._selects, self._takes_back = False, selects, takes_back
        self._submit, self._choose, self._recall = submit, choose, recall
        self._attach_text, self._pass_on = attach, pass_on
        self._typed_at = 0.0

    def action_newline(self) -> None:
        """Break the line."""
        self.insert("\n")

    @property
    def rests(self) -> bool:
        """Whether nobody is typing, so that a dialog takes no key which was meant for this."""
        return time.monotonic() - self._typed_at > _REST_SECONDS

    @property
    def before_cursor(self) -> str:
        """The text up to the cursor."""
        return self.get_text_range((0, 0), self.cursor_location)

    def replace_before_cursor(self, start: int, text: str) -> None:
        """Put `text` in place of what stands between the character `start` and the cursor."""
        before = self.before_cursor[:start]
        row = before.count("\n")
        column = len(before) - (before.rfind("\n") + 1)
        self.replace(text, (row, column), self.cursor_location)

    def take(self) -> str:
        """The text; the prompt is empty afterwards."""
        text = self.text
        self.load_text("")
        return text

    def put(self, text: str) -> None:
        """Replace the text, with the cursor at its end."""
        self.load_text(text)
        self.move_cursor(self.document.end)

    def scroll_cursor_visible(self, center: bool = False, animate: bool = False) -> Offset:
        """As Textual's, which in 8.2 fails amid an undo that takes the scroll bar away.

        The cursor is still on a line that is gone then; it is shown once it has its place.
        """
        if self.cursor_location[0] >= self.document.line_count:
            return Offset()
        return super().scroll_cursor_visible(center, animate)

    async def _on_key(self, event: events.Key) -> None:
        self._typed_at = time.monotonic()
        selecting = event.key in _WHILE_SELECTING and self._selects()
        foreign = event.key in _ALWAYS or (
            not self.text and (selecting or event.key in _WHEN_EMPTY)
        )
        step = self._step(event.key)
        if event.key in _NEWLINE:
            self.action_newline()
        elif event.key == "enter":
            self._submit()
        elif self.suggesting and event.key in _WHILE_SUGGESTING:
            self._choose(event.key)
        elif foreign:
            self._pass_on(event.key)
        elif step is not None:
            self._recall(step)
        elif event.key == "escape" and self._takes_back():
            await self.run_action("screen.stop")
        elif own := self._bindings.key_to_bindings.get(event.key):
            # Textual would run it once the key has bubbled up to the app: after letters that
            # were typed later.
            await self.run_action(own[0].action)
        else:
            await super()._on_key(event)
            return
        event.stop()
        event.prevent_default()

    def on_click(self, event: events.Click) -> None:
        """Two clicks select a word, three the line."""
        row, column = self.cursor_location
        if event.chain == 2:
            for word in WORD.finditer(self.document.get_line(row)):
                if word.start() <= column < word.end():
                    self.selection = Selection((row, word.start()), (row, word.end()))
        elif event.chain > 2:
            self.select_line(row)

    def _step(self, key: str) -> int | None:
        """Where an arrow leads out of the text."""
        at, wrapped = self.cursor_location, self.navigator
        if key == "up" and at[0] == 0 and wrapped.is_first_wrapped_line(at):
            return -1
        last = at[0] == self.document.line_count - 1 and wrapped.is_last_wrapped_line(at)
        return 1 if key == "down" and last else None

    async def _on_paste(self, event: events.Paste) -> None:
        event.prevent_default()
        event.stop()
        self._typed_at = time.monotonic()
        text = inert(event.text)
        if len(text) > _MAX_PASTE:
            self._attach_text(text)
        else:
            self.insert(text)
