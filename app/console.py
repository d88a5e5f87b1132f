"""Shows a stream of events line by line: answers on stdout, everything else on stderr."""

import sys
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from app.events import (
    Completion,
    Event,
    Finished,
    FinishReason,
    PrefillProgress,
    TextChunk,
    ThinkingChunk,
    Truncated,
)
from app.flag_words import with_flags
from app.inert import inert, inert_line
from app.progress import token_bar
from app.streams import OutputError, check_reader, styled
from kvcache.errors import EmberError


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What became of one row. error: what kept it from its end, or from its beginning."""

    completion: Completion | None
    error: EmberError | None

    def whole(self) -> Completion:
        """The completion. Raises the error where there is one."""
        if self.error is not None:
            raise self.error
        assert self.completion is not None
        return self.completion


class Printer:
    """Prints text on stdout as it comes, thinking on stderr; each begins a line of its own."""

    def __init__(self, *, thinking: bool) -> None:
        self._console = Console(file=styled(sys.stderr), highlight=False) if thinking else None
        self._printed, self._is_thinking = False, False

    def add(self, event: Event) -> None:
        """Print what of an event is to be seen."""
        if isinstance(event, ThinkingChunk):
            self.think(event.text)
        elif isinstance(event, TextChunk):
            self.say(event.text)

    def think(self, text: str) -> None:
        """Print what comes next of thinking."""
        if text and self._console is not None:
            self._console.print(_dim(text), end="", soft_wrap=True)
            self._is_thinking = True

    def say(self, text: str) -> None:
        """Print what comes next of the answer."""
        self._end_thinking()
        print(text, end="", flush=True)
        self._printed = True

    def end(self) -> None:
        """End the line."""
        self._end_thinking()
        if self._printed:
            print(flush=True)

    def _end_thinking(self) -> None:
        if self._is_thinking and self._console is not None:
            self._console.print()
        self._is_thinking = False


def show_thinking(text: str) -> None:
    """Print all that was thought before an answer."""
    if text:
        Console(file=styled(sys.stderr), highlight=False).print(_dim(text), soft_wrap=True)


def _dim(text: str) -> Text:
    return Text(inert(text), style="dim")


def show(
    events: Generator[Event, None, None], *, rows: int = 1, echo: bool, thinking: bool = False
) -> list[Answer]:
    """Follow events to their end, or to an error; returns the answers, those before it too.

    echo: print text as it comes (for one row; rows of a batch would mix), and with thinking
    that too. The events are stopped where nobody reads stdout (BrokenPipeError) or it takes
    no more (OutputError).
    """
    completions: dict[int, Completion] = {}
    failure: EmberError | None = None
    printer = Printer(thinking=thinking) if echo else None
    with closing(events):
        try:
            for event in _after_prefill(events):
                check_reader()
                if printer is not None:
                    printer.add(event)
                if isinstance(event, Finished):
                    completions[event.row] = event.completion
        except OutputError:
            raise
        except EmberError as error:
            failure = error
    if printer is not None:
        printer.end()
    return [_answer(completions.get(row), failure) for row in range(rows)]


def _answer(completion: Completion | None, failure: EmberError | None) -> Answer:
    ended = completion is not None and completion.finish_reason is not FinishReason.FAILED
    return Answer(completion=completion, error=None if ended else failure)


def _after_prefill(events: Iterator[Event]) -> Iterator[Event]:
    """Follow the prefill with a bar; gives the events after it."""
    with token_bar("reading") as report:
        for event in events:
            check_reader()
            if isinstance(event, PrefillProgress):
                report(event.done, event.total)
            elif isinstance(event, Truncated):
                note(f"prompt cut to {event.kept} tokens: its oldest {event.dropped} were dropped")
            else:
                first = event
                break
        else:
            return
    yield first
    yield from events


def note(text: str) -> None:
    """Say something beside the answer, in one line."""
    print(f"ember: {inert_line(text)}", file=sys.stderr)


def note_loop(completion: Completion, of: str = "") -> None:
    """Say of an answer that it was stopped where it went round in circles."""
    if completion.finish_reason is FinishReason.LOOP:
        note(
            f"{of}the answer repeats itself: stopped. --temp 0.8 "
            "--repeat-penalty 1.2 gives another, --allow-loops lets it go on"
        )


def error_note(error: object) -> None:
    """Say what failed, where the command goes on."""
    note(f"error: {with_flags(error)}")
