"""stdin, stdout and stderr, made safe once at the start: all that is printed passes here.

On a terminal, text is inert. Elsewhere stdout gets the answer byte for byte; stderr
is for people, who read logs in terminals, so it is inert wherever it goes. Nothing
is said to a stderr that cannot be written. Knows no command.
"""

import codecs
import json
import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import TextIO

from app.inert import inert, inert_json
from app.interrupt import exit_code
from kvcache.errors import EmberError, reason

_STDIN, _STDOUT, _STDERR = 0, 1, 2
_WHAT_CAN_BE = "ember.what_can_be"


def _what_can_be(error: UnicodeError) -> tuple[str | bytes, int]:
    """Bytes of a file's name as they were; what the encoding has not got, as an escape."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


codecs.register_error(_WHAT_CAN_BE, _what_can_be)


class OutputError(EmberError):
    """stdout takes no more: its disk is full, or it was closed."""


class Output(TextIOWrapper):
    """stdout or stderr. What stdout refuses raises BrokenPipeError or OutputError.

    A terminal that has gone ends the program, as a hang-up does. was_terminal: whether it was
    one when it was opened. styled: nothing is made inert, for texts that are already, between
    sequences of our own.
    """

    def __init__(
        self,
        descriptor: int,
        encoding: str,
        *,
        styled: bool = False,
        for_people: bool = False,
    ) -> None:
        # With a buffer of its own: of two streams over one buffer, the first to go closes it.
        raw = open(descriptor, "wb", closefd=False)  # noqa: SIM115
        for_people = for_people or descriptor == _STDERR or raw.isatty()
        super().__init__(raw, encoding, _WHAT_CAN_BE, line_buffering=for_people)
        self._descriptor, self._inert = descriptor, for_people and not styled
        self.was_terminal = raw.isatty()
        self._half_end = ""
        self._refused: OSError | None = None

    def write(self, text: str) -> int:
        """Write text, made inert where people read it."""
        shown = text
        if self._inert:
            whole = self._half_end + text
            self._half_end = "\r" if whole.endswith("\r") else ""
            shown = inert(whole.removesuffix("\r"))
        with self._refusals():
            super().write(shown)
        return len(text)

    def flush(self) -> None:
        """Hand on what was written."""
        with self._refusals():
            super().flush()

    def styled(self) -> "Output":
        """The way for rich to the same place."""
        self.flush()
        return Output(self._descriptor, self.encoding, styled=True)

    def drop(self) -> None:
        """Let all that was not written go, and all that follows: it must not fail again at exit."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._descriptor)
        os.close(nowhere)
        self._refused = None

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Raise what is refused, again too: whoever was told first may have kept it to himself."""
        try:
            yield
        except OSError as error:
            is_gone = self.was_terminal and hung_up(self._descriptor)
            self.drop()
            if self._descriptor == _STDOUT and is_gone:
                raise SystemExit(exit_code(signal.SIGHUP)) from error
            if self._descriptor == _STDOUT:
                self._refused = error
        if isinstance(self._refused, BrokenPipeError):
            raise self._refused
        if self._refused is not None:
            told = f"cannot write to stdout: {reason(self._refused)}"
            raise OutputError(told) from self._refused


def prepare() -> None:
    """Replace Python's three streams. A terminal of which nothing is said obeys nothing."""
    _fill_closed()
    os.environ["TERM"] = os.environ.get("TERM") or "dumb"
    given = sys.stdin, sys.stdout, sys.stderr
    encodings = [stream.encoding if stream else "utf-8" for stream in given]
    source = open(_STDIN, "rb", closefd=False)  # noqa: SIM115
    # What is no text is found when it is read, by its surrogates; line ends stay as they are.
    sys.stdin = TextIOWrapper(source, encodings[0], "surrogateescape", newline="\n")
    sys.stdout, sys.stderr = Output(_STDOUT, encodings[1]), Output(_STDERR, encodings[2])


def keep_stderr() -> None:
    """From here on nobody but Python writes to stderr: what libraries have to say is lost."""
    own, nowhere = os.dup(_STDERR), os.open(os.devnull, os.O_WRONLY)
    sys.stderr = Output(own, sys.stderr.encoding, for_people=True)
    os.dup2(nowhere, _STDERR)
    os.close(nowhere)


def styled(stream: TextIO) -> TextIO:
    """A stream as rich needs it, with its colours; the texts that rich is given are to be inert."""
    return stream.styled() if isinstance(stream, Output) else stream


def print_json(found: object) -> None:
    """Print one JSON object: the same for a terminal as for a file, in any encoding."""
    written = (sys.stdout.encoding or "utf-8").lower().startswith("utf")
    print(inert_json(json.dumps(found, ensure_ascii=not written)))


def drop_output() -> None:
    """Print nothing more: what stdout refused has been told, or needs no word."""
    if isinstance(sys.stdout, Output):
        sys.stdout.drop()


def check_reader() -> None:
    """End where nobody can read stdout any more, also if nothing is written yet.

    Raises BrokenPipeError; SystemExit as for a hang-up where it was a terminal.
    """
    if hung_up(_STDOUT):
        if isinstance(sys.stdout, Output) and sys.stdout.was_terminal:
            raise SystemExit(exit_code(signal.SIGHUP))
        raise BrokenPipeError


def hung_up(descriptor: int) -> bool:
    """Whether nobody is at the other side."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(found & (select.POLLERR | select.POLLHUP) for _, found in poll.poll(0))


def _fill_closed() -> None:
    """Open what was closed, to be refused: or the next file would get the number, and the text."""
    for descriptor in (_STDIN, _STDOUT, _STDERR):
        try:
            os.fstat(descriptor)
        except OSError:
            way = os.O_WRONLY if descriptor == _STDIN else os.O_RDONLY
            os.dup2(os.open(os.devnull, way), descriptor)
