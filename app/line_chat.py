"""The chat without a screen: asks, waits, and prints what has come, line by line.

The chat itself is the one that the full screen shows. Knows no model and no store.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from app import texts
from app.chat.command import Command, find
from app.chat.completion import Suggestion, suggestions
from app.chat.controller import ChatController
from app.chat.state import Draft, Phase
from app.console import Printer, note
from app.events import Completion, FinishReason
from app.flag_words import with_flags
from app.inert import inert_line
from app.interrupt import Cancel, cancel_on_interrupt
from app.line_input import LineInput
from app.progress import load_bar, token_bar
from app.report import summary
from app.sessions.chat import ChatMessage, State, shown_title
from app.sessions.export import exported
from app.streams import OutputError, check_reader
from kvcache.errors import EmberError
from kvcache.stats import CacheStats, sum_layers
from models.text.messages import Role

_TICK = 1 / 40
_HINT = "/help lists the commands, Ctrl-D ends the chat"
_KEYS = """\
@FILE in a message sends a file along. Ctrl-C stops an answer.
In a terminal: Alt-Enter, or \\ at the end, begins another line; Up recalls; Tab completes."""


class LineChat:
    """chat: what is said, and by which model. thinking: whether it is shown, on stderr.

    first: a message that is sent before any is read, if anything. failed: whether something that
    was said was refused, or got no answer.
    """

    def __init__(
        self, chat: ChatController, source: LineInput, *, thinking: bool, first: str = ""
    ) -> None:
        self.chat = chat
        self._source, self._thinking, self._first = source, thinking, first
        self._begun, self._ended = Draft(text=""), False
        self.failed = False
        self._cancel = Cancel()

    def run(self, spec: str) -> None:
        """Load the model, and ask and answer until the user ends it.

        Raises EmberError for what keeps the model from loading, KeyboardInterrupt.
        """
        # Also between two messages: a Ctrl-D that the terminal itself took would be lost.
        with self._source.unseen():
            self._load(spec)
            self._converse()

    def _load(self, spec: str) -> None:
        self.chat.load(spec)
        with load_bar() as report, self._working():
            while self.chat.busy:
                self._step()
                self._cancel.check()
                if (now := self.chat.models.progress) is not None:
                    report(now.done_bytes, now.total_bytes or None, now.label)
        self._tell()
        if self.chat.problem is not None:
            raise EmberError(self.chat.problem.cause)

    def _converse(self) -> None:
        model = self.chat.model
        assert model is not None
        print(f"{inert_line(model.name)} · window {model.window} tokens · {_HINT}")
        self._show_last()
        while not self._ended:
            begun, self._begun = self._begun, Draft(text="")
            try:
                typed, self._first = self._first or self._source.read(begun.text), ""
                with self._working():
                    self._take(typed, begun)
                self._cancel.check_killed()
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                if self.chat.busy:  # a model that does not hear
                    raise
                print(f"\n{_HINT}")

    # -- what commands use --

    def answer(self) -> None:
        """Print the answer that has begun, to its end."""
        answer, before = self.chat.chat.messages[-1], self.chat.last
        shown = _Shown(answer, Printer(thinking=self._thinking))
        with token_bar("reading") as report:
            while self.chat.phase is Phase.READING:
                self._step()
                read = self.chat.run.prefill if self.chat.run else None
                if read is not None:
                    report(read.done, read.total)
        self._tell()
        shown.add_new()
        while self.chat.busy:
            self._step()
            shown.add_new()
        shown.end()
        self._tell()
        self._tell_of_end(answer, None if self.chat.last is before else self.chat.last)

    def stats(self) -> CacheStats:
        """What the cache holds of this chat."""
        return sum_layers(self.chat.layer_stats())

    def put(self, draft: Draft) -> None:
        """Have the next message begin with this."""
        self._begun = draft

    def leave(self) -> None:
        """Ask for nothing more."""
        self._ended = True

    # -- steps of the above --

    def _take(self, typed: str, begun: Draft) -> None:
        """Do what a message says. begun: what it was made of, where it was taken back before."""
        text = ""
        try:
            text = texts.typed(typed).strip()
            if text.startswith("/") and "\n" not in text:
                name, _, argument = text[1:].partition(" ")
                find(COMMANDS, name).start(self, argument.strip())
            elif text:
                others = tuple(each for each in begun.attachments if each.name not in text)
                self.chat.ask(Draft(text=text, attachments=others))
                self.answer()
        except OutputError:
            raise
        except EmberError as error:
            self.failed = True
            note(with_flags(error))
            if not text.startswith("/"):
                self.put(Draft(text=text, attachments=begun.attachments))

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Within this, Ctrl-C stops what the model does, a second one what the program does."""
        with cancel_on_interrupt() as self._cancel:
            yield

    def _step(self) -> None:
        """Take what the model has given since the last step. A kill ends the program at once."""
        check_reader()
        time.sleep(_TICK)
        self._cancel.check_killed()
        if self._cancel.is_set() and not self.chat.stopping:
            self.chat.stop()
        self.chat.tick()

    def _tell(self) -> None:
        for text in self.chat.notices:
            note(text)
        self.chat.notices.clear()

    def _tell_of_end(self, answer: ChatMessage, completion: Completion | None) -> None:
        long, problem, model = self.chat.too_long, self.chat.problem, self.chat.model
        self.failed = self.failed or long is not None or problem is not None
        if long is not None:
            self.chat.too_long = None
            self.put(self.chat.undo())
            note(
                f"the message makes a prompt of {long.prompt_tokens} tokens, but the window holds "
                f"{long.window}: it is taken back; shorten it, or leave and come back with --ctx"
            )
        elif problem is not None:
            note(f"{problem.cause} (/retry asks again, /new begins another chat)")
        elif completion is not None and model is not None:
            if completion.finish_reason is FinishReason.LOOP:
                note("the answer repeats itself: stopped. /retry gives another")
            print(summary(completion, self.stats(), model.holds), file=sys.stderr)
        elif answer.state is State.STOPPED:
            note("stopped")

    def _show_last(self) -> None:
        """Where a chat that goes on has been left."""
        chat = self.chat.chat
        if chat.messages:
            print(f"“{shown_title(chat.title)}”, {len(chat.messages)} messages; the last:")
        for message in chat.messages[-2:]:
            print(f"> {message.text}" if message.role is Role.USER else message.text)


class _Shown:
    """What of a message has been printed."""

    def __init__(self, message: ChatMessage, printer: Printer) -> None:
        self._message, self._printer = message, printer
        self._text, self._thought = len(message.text), len(_thought_of(message))

    def add_new(self) -> None:
        """Print what the message has more now."""
        text, thought = self._message.text[self._text :], _thought_of(self._message)
        self._printer.think(thought[self._thought :])
        self._thought = len(thought)
        if text:
            self._printer.say(text)
            self._text += len(text)

    def end(self) -> None:
        """End the line."""
        self._printer.end()


def _thought_of(message: ChatMessage) -> str:
    return message.thought.text if message.thought else ""


# -- commands --


def completions(before: str) -> list[Suggestion]:
    """What may follow a text: the rest of a command's name, or of a file's."""
    return suggestions(before, COMMANDS, lambda _: ())


def _help(_lines: LineChat, _text: str) -> None:
    for each in COMMANDS:
        print(f"{f'/{each.name} {each.usage}'.rstrip():<16}{each.about}")
    print(_KEYS)


def _new(lines: LineChat, _text: str) -> None:
    lines.chat.new_chat()


def _retry(lines: LineChat, _text: str) -> None:
    lines.chat.retry()
    lines.answer()


def _continue(lines: LineChat, _text: str) -> None:
    lines.chat.continue_()
    lines.answer()


def _undo(lines: LineChat, _text: str) -> None:
    draft = lines.chat.undo()
    lines.put(draft)
    print(f"taken back: {inert_line(draft.text)}")


def _system(lines: LineChat, text: str) -> None:
    if text:
        lines.chat.set_system("" if text == "clear" else text)
    print(f"system prompt: {inert_line(lines.chat.chat.system) or 'none'}")


def _title(lines: LineChat, text: str) -> None:
    if not text:
        raise EmberError("expected a title: /title Boats")
    lines.chat.rename(text)


def _export(lines: LineChat, text: str) -> None:
    print(f"written to {inert_line(exported(lines.chat.chat, text))}")


def _stats(lines: LineChat, _text: str) -> None:
    print(lines.stats())


def _quit(lines: LineChat, _text: str) -> None:
    lines.leave()


COMMANDS: tuple[Command[LineChat], ...] = (
    Command(name="new", about="begin another chat", run=_new),
    Command(name="reset", about="the same", run=_new),
    Command(name="retry", about="answer the last question again", run=_retry),
    Command(name="continue", about="go on with the last answer", run=_continue),
    Command(name="undo", about="take back the last question and answer", run=_undo),
    Command(
        name="system",
        about="show the system prompt, or set it; `clear` removes it",
        run=_system,
        usage="[TEXT]",
    ),
    Command(name="title", about="rename this chat", run=_title, usage="TEXT"),
    Command(
        name="export",
        about="write the chat to a file: Markdown, or JSON for .json",
        run=_export,
        usage="[FILE]",
    ),
    Command(name="stats", about="what the cache holds", run=_stats),
    Command(name="help", about="commands and keys", run=_help),
    Command(name="quit", about="leave", run=_quit),
)
