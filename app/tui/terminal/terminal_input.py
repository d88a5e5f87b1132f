"""What a terminal sends, as Textual's events; pastes are taken out before Textual's parser.

Textual 8.2's parser takes what follows an escape character in a paste for keys: it
types them, Enter too, and is slow at it. A paste comes out inert, as a field would
show what is in it to the terminal. Bytes that are not UTF-8 are dropped: a terminal
set to another encoding sends such for a letter with an accent. A paste whose end is lost
on the way is ended by Ctrl-C, which does no more then. Knows no terminal.
"""

import re
from codecs import getincrementaldecoder
from collections.abc import Generator, Iterable, Iterator

from textual import events
from textual._xterm_parser import BRACKETED_PASTE_END, BRACKETED_PASTE_START, XTermParser
from textual.message import Message

from app.inert import inert
from app.lost_end import LostEnd

# Nobody types so much at once: a paste by a terminal that does not mark pastes. In
# pieces that a prompt still takes in.
_UNMARKED = re.compile("([^\x00-\x1f\x7f-\x9f]{64,1000})")
_MOST_HELD = len(BRACKETED_PASTE_START) - 1


class TerminalInput:
    """Turns bytes to events; Textual's parser sees every paste as an empty one.

    debug: have Textual log what it parses.
    """

    def __init__(self, *, debug: bool = False) -> None:
        self._parser = XTermParser(debug)
        self._decoder = getincrementaldecoder("utf-8")(errors="ignore")
        self._pasting = False
        self._pasted: list[str] = []
        # The end of what came, perhaps a part of the mark that ends keys or a paste.
        self._held = ""
        self._lost_end = LostEnd()

    def feed(self, data: bytes) -> Iterator[Message]:
        """The events of more bytes."""
        text = self._decoder.decode(data)
        if self._lost_end.is_ended_by(text, pasting=self._pasting):
            yield from self._end_paste(self._held)
            return
        while text:
            text = yield from self._paste(text) if self._pasting else self._keys(text)

    def tick(self) -> Iterable[Message]:
        """What the time that has passed makes of earlier bytes: a lone ESC is the key."""
        return self._parser.tick()

    def leave(self) -> Iterator[Message]:
        """What came of a paste so far, where nothing more will be read."""
        if self._pasting:
            yield from self._end_paste(self._held)

    def _keys(self, text: str) -> Generator[Message, None, str]:
        """Keys up to where a paste begins; returns what follows."""
        known = self._held + text
        begin = known.find(BRACKETED_PASTE_START)
        if begin < 0:
            self._held = known[-_MOST_HELD:]
            yield from self._typed(text)
            return ""
        mark_ends = begin + len(BRACKETED_PASTE_START)
        yield from self._typed(known[len(self._held) : mark_ends])
        self._pasting, self._held = True, ""
        return known[mark_ends:]

    def _typed(self, text: str) -> Iterator[Message]:
        for at, part in enumerate(_UNMARKED.split(text)):
            if at % 2:
                yield events.Paste(inert(part))
            elif part:
                yield from self._parser.feed(part)

    def _paste(self, text: str) -> Generator[Message, None, str]:
        """Pasted text up to its end; returns what follows.

        An end that another one follows stood in the pasted text: what comes between
        them is no keys.
        """
        text = self._held + text
        end = text.find(BRACKETED_PASTE_END)
        if end < 0:
            self._pasted.append(text[:-_MOST_HELD])
            self._held = text[-_MOST_HELD:]
            return ""
        next_paste = text.find(BRACKETED_PASTE_START, end)
        end = text.rfind(BRACKETED_PASTE_END, 0, None if next_paste < 0 else next_paste)
        yield from self._end_paste(text[:end])
        return text[end + len(BRACKETED_PASTE_END) :]

    def _end_paste(self, text: str) -> Iterator[Message]:
        pasted = "".join([*self._pasted, text])
        self._pasting, self._held = False, ""
        self._pasted.clear()
        for event in self._parser.feed(BRACKETED_PASTE_END):
            yield _pasted(pasted) if isinstance(event, events.Paste) else event


def _pasted(text: str) -> events.Paste:
    """Terminals send a line end as a carriage return."""
    return events.Paste(inert(text if "\n" in text else text.replace("\r", "\n")))
