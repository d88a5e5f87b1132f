"""Shows a stream of events line by line: text on stdout, everything else on stderr."""

import sys
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass

from app.generation import Event, Finished, PrefillProgress, TextChunk, Truncated
from app.inert import inert_line
from app.progress import token_bar
from app.streams import OutputError, check_reader
from app.transcript import Completion, FinishReason
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


def show(events: Generator[Event, None, None], *, rows: int = 1, echo: bool) -> list[Answer]:
    """Follow events to their end, or to an error; returns the answers, those before it too.

    echo: print text as it comes (for one row; rows of a batch would mix). The events are
    stopped where nobody reads stdout (BrokenPipeError) or it takes no more (OutputError).
    """
    completions: dict[int, Completion] = {}
    failure: EmberError | None = None
    said = False
    with closing(events):
        try:
            for event in _after_prefill(events):
                check_reader()
                if isinstance(event, TextChunk) and echo:
                    print(event.text, end="", flush=True)
                    said = True
                elif isinstance(event, Finished):
                    completions[event.row] = event.completion
        except OutputError:
            raise
        except EmberError as error:
            failure = error
    if said:
        print(flush=True)
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


def error_note(error: object) -> None:
    """Say what failed, where the command goes on."""
    note(f"error: {error}")
