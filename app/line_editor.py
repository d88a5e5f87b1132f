"""A line editor for the chat without a screen: history, completion, messages of many lines.

Knows no chat: what was asked before and what may follow are given.
"""

import sys
import termios
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from signal import SIGHUP

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.history import History
from prompt_toolkit.input.posix_utils import PosixStdinReader
from prompt_toolkit.input.vt100 import Vt100Input
from prompt_toolkit.input.vt100_parser import Vt100Parser
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.key_binding.key_processor import KeyPress
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.shortcuts import CompleteStyle

from app.chat.completion import Suggestion
from app.inert import inert_line
from app.interrupt import exit_code, telling_of_kills
from app.line_input import PROMPT
from app.lost_end import LostEnd
from app.streams import hung_up, styled

_MORE = " " * len(PROMPT)
_READ_BYTES = 1 << 16
_PASTE_ENDS = "\x1b[201~"
_LOCAL_FLAGS = 3  # where termios.tcgetattr has them


class LineEditor:
    """Enter sends; Alt-Enter, or a backslash at the end, begins another line.

    A paste is one message, however many lines it has.
    """

    def __init__(
        self,
        earlier: Callable[[], Sequence[str]],
        complete: Callable[[str], Iterable[Suggestion]],
    ) -> None:
        """earlier: what was asked in other runs, oldest first. complete: what may follow a text."""
        source, screen = _Input(), Vt100_Output.from_pty(styled(sys.stdout))
        # The answer to where the cursor is may come when the next program reads.
        screen.enable_cpr = False
        self._session: PromptSession[str] = PromptSession(
            PROMPT,
            multiline=True,
            prompt_continuation=_MORE,
            history=_Earlier(earlier),
            completer=_Completer(complete),
            complete_style=CompleteStyle.READLINE_LIKE,
            key_bindings=_keys(),
            enable_suspend=True,
            input=source,
            output=screen,
        )
        self._killed = 0  # or the exit code

    def read(self, begun: str = "") -> str:
        """The next message; a terminal that has gone ends the program."""
        sys.stdout.flush()
        try:
            with telling_of_kills(self._leave):
                return self._session.prompt(default=begun)
        except EOFError:
            if hung_up(sys.stdin.fileno()):
                raise SystemExit(exit_code(SIGHUP)) from None
            raise
        finally:
            # A kill while it begins leaves out the editor's own end.
            self._session.app.renderer.reset()
            if self._killed:
                raise SystemExit(self._killed)

    def _leave(self, code: int) -> None:
        """Let the editor end, and then the program: its loop would show what is raised amid it."""
        self._killed = code
        app = self._session.app
        if app.loop is None:
            raise SystemExit(code)
        app.loop.call_soon_threadsafe(self._end_reading)

    def _end_reading(self) -> None:
        app = self._session.app
        if app.future is not None and not app.future.done():
            app.exit(exception=EOFError())

    @contextmanager
    def unseen(self) -> Iterator[None]:
        """Within this, the terminal shows nothing by itself, but hears Ctrl-C and Ctrl-Z."""
        number = sys.stdin.fileno()
        try:
            before = termios.tcgetattr(number)
            now = termios.tcgetattr(number)
            now[_LOCAL_FLAGS] &= ~(termios.ECHO | termios.ICANON)
            termios.tcsetattr(number, termios.TCSANOW, now)
        except termios.error:  # it has gone
            yield
            return
        try:
            yield
        finally:
            if not hung_up(number):
                termios.tcsetattr(number, termios.TCSANOW, before)


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter", filter=has_focus(DEFAULT_BUFFER))
    def send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.text.endswith("\\") and buffer.document.is_cursor_at_the_end:
            buffer.delete_before_cursor()
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter", filter=has_focus(DEFAULT_BUFFER))
    def break_line(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    return keys


class _Input(Vt100Input):
    """Keys of a terminal, until it goes."""

    def __init__(self) -> None:
        super().__init__(sys.stdin)
        self.vt100_parser = _Parser(self.vt100_parser.feed_key_callback)
        self.stdin_reader = _Reader(sys.stdin.fileno(), encoding=sys.stdin.encoding)


class _Reader(PosixStdinReader):
    """Ends with its terminal, which refuses to be read for ever."""

    def read(self, count: int = _READ_BYTES) -> str:
        """What has been typed since."""
        if hung_up(self.stdin_fd):
            self.closed = True
        return super().read(count)


class _Parser(Vt100Parser):
    """Lets a hand end a paste whose own end is lost."""

    def __init__(self, feed_key_callback: Callable[[KeyPress], None]) -> None:
        super().__init__(feed_key_callback)
        self._lost_end = LostEnd()

    def feed(self, data: str) -> None:
        """Take what has been typed."""
        is_ended = self._lost_end.is_ended_by(data, pasting=self._in_bracketed_paste)
        super().feed(_PASTE_ENDS if is_ended else data)


class _Earlier(History):
    """What was asked before; the chats that are saved are its file."""

    def __init__(self, earlier: Callable[[], Sequence[str]]) -> None:
        super().__init__()
        self._earlier = earlier

    def load_history_strings(self) -> Iterable[str]:
        """The newest first."""
        return reversed(self._earlier())

    def store_string(self, string: str) -> None:
        """A question is saved with its chat."""


class _Completer(Completer):
    """Suggestions, as the editor wants them."""

    def __init__(self, complete: Callable[[str], Iterable[Suggestion]]) -> None:
        self._complete = complete

    def get_completions(self, document: Document, _event: CompleteEvent) -> Iterator[Completion]:
        """What may stand at the cursor."""
        before = document.text_before_cursor
        for each in self._complete(before):
            yield Completion(
                each.insert,
                start_position=each.start - len(before),
                display=inert_line(each.label),
            )
