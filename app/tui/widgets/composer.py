"""The prompt with its completions, attachments, and what the draft would cost."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from textual import on, work
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.widgets import Static

from app.chat.asking import draft_of
from app.chat.completion import Suggestion
from app.chat.history import PromptHistory
from app.chat.state import Draft
from app.inert import inert_line
from app.sessions.chat import Attachment, ChatMessage
from app.tui.widgets.prompt import Prompt
from app.tui.widgets.suggestions import MOST_LINES, Suggestions

_COUNT_AFTER = 0.25
# A longer text goes along without being put into the prompt, which would wrap it for a second.
_MAX_EDITED = 50_000
_MOST_PROMPT_LINES = 8


class Composer(Vertical):
    """Makes drafts.

    prompt: where the text is. weigh: what a draft would cost, a line; for a question that it
    replaces, if any. complete: what could follow the text before the cursor. history: what
    was sent before. selects, takes_back, pass_on: as for `Prompt`. send: is given a draft that
    the user sends, and the question that it replaces, if any. run_command: is given a line that
    begins with a slash. send_nothing: Enter on nothing. All three are called, that what is typed
    next comes after them: an Esc finds the question where it waits, a question the new chat.
    """

    class Noted(Message):
        """What stands beside the draft has changed."""

    def __init__(
        self,
        *,
        weigh: Callable[[Draft, ChatMessage | None], Awaitable[str]],
        complete: Callable[[str], Sequence[Suggestion]],
        history: PromptHistory,
        selects: Callable[[], bool],
        takes_back: Callable[[], bool],
        send: Callable[[Draft, ChatMessage | None], None],
        run_command: Callable[[str], None],
        send_nothing: Callable[[], None],
        pass_on: Callable[[str], None],
    ) -> None:
        super().__init__()
        self.editing: ChatMessage | None = None
        self._weigh, self._complete, self._history = weigh, complete, history
        self._send, self._run_command, self._send_nothing = send, run_command, send_nothing
        self._unchanged = Draft(text="")  # what is edited, as it was put in
        self._attachments: list[Attachment] = []
        self._cost = ""
        self._had_text = False
        self._recalled: str | None = None
        self.prompt = Prompt(
            selects=selects,
            takes_back=takes_back,
            submit=self.submit,
            choose=self._choose,
            recall=self._recall,
            attach=self._attach_paste,
            pass_on=pass_on,
        )
        self._suggestions = Suggestions()

    def compose(self) -> ComposeResult:
        yield self._suggestions
        with Horizontal(id="prompt-row"):
            yield Static("❯", id="prompt-mark")
            yield self.prompt

    def fit(self, rows: int) -> None:
        """Leave the conversation a part of so many rows, and the cursor in view."""
        self.prompt.styles.max_height = min(max(rows // 2, 1), _MOST_PROMPT_LINES)
        self._suggestions.most = min(max(rows // 3, 1), MOST_LINES)

    # -- the draft --

    @property
    def note(self) -> str:
        """What goes along with the text, and what it costs."""
        parts = ["editing · Esc leaves it"] if self.editing is not None else []
        parts += [f"@ {inert_line(each.name)}" for each in self._attachments]
        return " · ".join([*parts, self._cost] if self._cost else parts)

    def put(self, draft: Draft) -> None:
        """Replace the draft, which edits nothing."""
        self.editing = None
        self._attachments = list(draft.attachments)
        self.put_text(self._taken(draft.text))

    def put_text(self, text: str) -> None:
        """Replace the text and go on typing; what was typed is recalled as what was sent."""
        self._set_aside()
        self.prompt.put(text)
        self.prompt.focus()

    def edit(self, message: ChatMessage) -> None:
        """Put a question in to be changed."""
        self.put(draft_of(message))
        self.editing, self._unchanged = message, self._present
        self.post_message(self.Noted())

    def attach(self, attachment: Attachment) -> None:
        """Send a text along."""
        self._attachments.append(attachment)
        self.recount()
        self.post_message(self.Noted())

    def dismiss(self) -> bool:
        """Close what is open: completions, an edit, attachments. False where nothing was."""
        if self._suggestions.chosen is not None:
            self._suggest([])
            return True
        if self.editing is None and not self._attachments:
            return False
        if self.editing is not None:
            if self.prompt.text != self.editing.text:
                self._set_aside()
            self.prompt.take()
        self._clear()
        return True

    def drop(self, draft: Draft) -> None:
        """A draft that was put here is no more one, unless it was changed."""
        if self.editing is None and self._present == draft:
            self.prompt.take()
            self._clear()

    def accept(self, draft: Draft) -> None:
        """What was sent has been taken."""
        self._history.add(draft.text)

    def end_edit(self) -> bool:
        """The question that is edited is not shown any more; what was changed stays, as a draft.

        Returns whether there is one.
        """
        if not self.prompt.text.strip() or self._present == self._unchanged:
            self.prompt.take()
            self._clear()
            return False
        self.editing = None
        self.recount()
        self.post_message(self.Noted())
        return True

    def give_back(self, draft: Draft, editing: ChatMessage | None) -> None:
        """What was sent has been refused: it is here again, before what was typed since."""
        self.editing = editing
        self._attachments[:0] = draft.attachments
        self.prompt.put("\n".join(filter(None, (self._taken(draft.text), self.prompt.text))))
        self.post_message(self.Noted())

    def submit(self) -> None:
        """Send what is typed; what is typed next is another draft. Nothing may mean something."""
        if self._suggestions.moved:
            self._take_chosen()
            return
        text = self.prompt.text.strip()
        if text.startswith("/"):
            self._history.add(self.prompt.take())
            self._run_command(text)
        elif draft := self._question:
            editing = self.editing
            self.prompt.take()
            self._clear()
            self._send(draft, editing)
        else:
            self._send_nothing()

    @property
    def _present(self) -> Draft:
        """What stands here."""
        return Draft(text=self.prompt.text, attachments=tuple(self._attachments))

    def _taken(self, text: str) -> str:
        """What of a draft's text is put into the prompt: none of one that nobody edits there.

        That one goes along, and is recalled as what was sent where it is taken off again.
        """
        if len(text) <= _MAX_EDITED:
            return text
        self._history.add(text)
        self._attach_paste(text)
        return ""

    def _attach_paste(self, text: str) -> None:
        number = sum(each.name.startswith("pasted text") for each in self._attachments) + 1
        self.attach(Attachment(name=f"pasted text {number}", text=text))

    def _set_aside(self) -> None:
        """Nothing that was typed is lost."""
        if self.prompt.text.strip():
            self._history.add(self.prompt.text)

    def _clear(self) -> None:
        self.editing = None
        self._attachments.clear()
        self.recount()
        self.post_message(self.Noted())

    # -- typing --

    @on(Prompt.Changed)
    def _typed(self, event: Prompt.Changed) -> None:
        event.stop()
        if self.editing is not None and self._had_text and not self.prompt.text:
            self._clear()
        self._had_text = bool(self.prompt.text)
        # Arrows go on through what was sent before.
        is_recalled = self.prompt.text == self._recalled
        self._suggest([] if is_recalled else self._complete(self.prompt.before_cursor))
        self.recount()

    def _suggest(self, found: Sequence[Suggestion]) -> None:
        """Show completions, to which some keys are given while there are any."""
        self._suggestions.show(found)
        self.prompt.suggesting = bool(found)

    def _recall(self, step: int) -> None:
        text = self._history.step(self.prompt.text, step) if self.editing is None else None
        if text is not None:
            self._recalled = text
            self.prompt.put(text)

    def _choose(self, key: str) -> None:
        match key:
            case "up":
                self._suggestions.move(-1)
            case "down":
                self._suggestions.move(1)
            case _:
                self._take_chosen()

    def _take_chosen(self) -> None:
        """Put the chosen completion in."""
        chosen = self._suggestions.chosen
        if chosen is not None:
            self.prompt.replace_before_cursor(chosen.start, chosen.insert)

    # -- what it costs --

    def recount(self) -> None:
        """Weigh the draft anew: it has changed, or what else there is."""
        if self._cost and not self._question:
            self._cost = ""
            self.post_message(self.Noted())
        self._weigh_soon()

    @work(exclusive=True)
    async def _weigh_soon(self) -> None:
        """Weigh the draft a moment after the last key."""
        await asyncio.sleep(_COUNT_AFTER)
        draft = self._question
        self._cost = await self._weigh(draft, self.editing) if draft else ""
        self.post_message(self.Noted())

    @property
    def _question(self) -> Draft | None:
        """What the draft would ask; None for a command, or nothing."""
        text = self.prompt.text.strip()
        if text.startswith("/") or not (text or self._attachments):
            return None
        return Draft(text=text, attachments=tuple(self._attachments))
