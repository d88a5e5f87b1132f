"""Shows a stream of events line by line: text on stdout, everything else on stderr."""

import sys
from collections.abc import Iterator

from app.generation import Event, Finished, PrefillProgress, TextChunk, Truncated
from app.progress import token_bar
from app.transcript import Completion


def show(events: Iterator[Event], *, echo: bool) -> list[Completion]:
    """Follow events to their end; returns the completions in row order.

    echo: print text as it comes (for one row; rows of a batch would mix).
    """
    completions: dict[int, Completion] = {}
    first = _after_prefill(events)
    while first is not None:
        if isinstance(first, TextChunk) and echo:
            print(first.text, end="", flush=True)
        elif isinstance(first, Finished):
            completions[first.row] = first.completion
        first = next(events, None)
    if echo:
        print()
    return [completions[row] for row in sorted(completions)]


def _after_prefill(events: Iterator[Event]) -> Event | None:
    """Follow the prefill with a bar; returns the first event after it."""
    with token_bar("reading") as report:
        for event in events:
            if isinstance(event, PrefillProgress):
                report(event.done, event.total)
            elif isinstance(event, Truncated):
                note(f"prompt cut to {event.kept} tokens: its oldest {event.dropped} were dropped")
            else:
                return event
    return None


def note(text: str) -> None:
    """Say something beside the answer."""
    print(f"ember: {text}", file=sys.stderr)
