"""One window with a chat: what its terminal shows, and each action done in it.

Knows what must be seen on the screen; what must be on disk is asked of `kept`.
"""

import re
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import psutil
import pyte

from tests.app.monkey.actions import (
    NEWLINE,
    SELECT_ALL,
    Action,
    Ask,
    Edit,
    End,
    Interrupt,
    Keys,
    Pause,
    Resize,
    Type,
    Undo,
    pasted,
)
from tests.app.monkey.kept import FaultError, Kept
from tests.app.terminal import INTERRUPT, QUIT, Terminal
from tests.patience import patience

_LOOK_SECONDS, _SEEN_SECONDS, _KEPT_SECONDS, _READY_SECONDS = 0.05, 1.0, 5.0, 8.0
_CALM_SECONDS = 0.1
# Processor time of the chat, answers included, for each second it is given; what it takes at
# rest, of each second; and an end to that.
_SHARE, _AT_REST, _STARVED_SECONDS = 4.0, 0.05, 300.0
# Two within this time are one who wants to leave.
_INTERRUPTS_APART = 2.2
# How often Ctrl-C is pressed twice: to copy what is selected and stop what runs, to quit, and
# again where a busy machine let the second be heard late. How soon they are heard.
_MOST_INTERRUPTS, _HEARD_SECONDS = 10, 0.2
_BACKSPACE, _ENTER, _ESCAPE, _SUSPEND = b"\x7f", b"\r", b"\x1b", b"\x1a"
_PASTE_ENDS = b"\x1b[201~"
_EMPTY_PROMPT = "Ask, /"
_MARK = "❯ "
# What is said where there is nothing to edit, or not now.
_REFUSED = ("nothing to", "stop the answer")
# Why a question may be refused.
_TOLD = ("stop the answer", "still loading", "is changing", "waits", "no model", "being measured")
# The corner of a dialog before its title.
_DIALOG = "╭─ "
# Below the answer, or where a second one is refused, which is in the prompt again then.
_WAITS = "question waits"
_MODE = re.compile(r"\x1b\[\?(\d+)([hl])")
_STAY_ON = {"7", "25"}  # lines wrap, and the cursor is seen
_CODES = {
    **dict.fromkeys((End.QUIT, End.COMMAND), (0,)),
    End.INTERRUPTED: (0, 130),  # it may have left by two, and be told by the third
    End.SIGINT: (130,),
    End.SIGTERM: (143,),
    **dict.fromkeys((End.SIGHUP, End.HANG_UP), (129,)),
    End.SIGKILL: (-signal.SIGKILL,),
}
_KEYS = {End.QUIT: QUIT, End.COMMAND: b"/quit\r", End.INTERRUPTED: INTERRUPT * 2}


class Window:
    """A running chat; `follow` raises FaultError for what must not be.

    slowest: the longest that a word took to be seen. sent_again: questions whose Enter a dialog
    took that an earlier key had opened.
    """

    def __init__(self, terminal: Terminal, kept: Kept) -> None:
        self._terminal, self._kept = terminal, kept
        self._screen = pyte.Screen(120, 36)
        self._stream = pyte.Stream(self._screen)
        self._fed, self._drawn = 0, ""
        self._waiting: str | None = None
        self._interrupted_at, self._marks = 0.0, 0
        self._may_stop = False
        self._given = ""
        self.slowest, self.sent_again = 0.0, 0

    @property
    def shown(self) -> str:
        """All that the terminal was given."""
        return self._terminal.shown

    def start(self) -> None:
        """Wait until one can type, and the model is there."""

        def is_ready() -> bool:
            text = self._text()
            return _EMPTY_PROMPT in text and "loading" not in text

        self._demand(is_ready, _READY_SECONDS, "no prompt and model at first")

    def kill(self) -> None:
        """End the process, whatever it does."""
        self._terminal.process.kill()

    def stacks(self) -> str:
        """What the threads of the process do, which tells it as it is aborted."""
        before = len(self.shown)
        if not self.has_ended:
            self._terminal.process.send_signal(signal.SIGABRT)
            self._wait(lambda: self.has_ended, _SEEN_SECONDS)
            self._terminal.read_for(_LOOK_SECONDS)
        return self.shown[before:].replace("\r", "")

    def do(self, action: Action) -> None:
        """Do one thing, and hold what follows to what must."""
        self._waiting = None
        match action:
            case Keys():
                self._terminal.type(action.data)
            case Interrupt():
                self._interrupt()
            case Resize():
                self._resize(action)
            case Pause():
                self._pause(action)
            case Type():
                self._type(action.word, action.paste, at_once=action.at_once)
            case Ask():
                self._type(action.word, action.paste, at_once=action.at_once)
                self._send(action.word)
            case Edit():
                self._edit(action.word)
            case Undo():
                self._undo()
        self._terminal.read_for(_LOOK_SECONDS)
        self._kept_or_seen()

    @property
    def has_ended(self) -> bool:
        """Whether the chat has ended by itself, which keys may well have it do."""
        return self._terminal.process.poll() is not None

    def end(self, end: End) -> None:
        """End it so, amid whatever it does; hold the exit code and the terminal to what must be.

        What has ended by itself, by a click on the key bar for one, has ended well; or by a
        Ctrl-C that came while it left by another.
        """
        wanted = (0, 130) if self.has_ended else _CODES[end]
        if end is End.HANG_UP and not self.has_ended:
            code = self._terminal.hang_up()
        else:
            self._bring_to_end(end)
            if self._may_stop:
                self._wait(lambda: self.has_ended, _SEEN_SECONDS)
            code = self._terminal.close()
            if code >= 0:
                self._require_restored()
        if code not in wanted:
            expected = " or ".join(map(str, wanted))
            raise FaultError(
                f"ended by {end.value} with {code}, expected {expected}: {self._last_lines()}"
            )
        if self._waiting and end is not End.SIGKILL and not self._kept.has(self._waiting):
            raise FaultError(f"{self._waiting} waited for the model at the end, and is not saved")

    def require_no_traceback(self) -> None:
        """Nothing that was shown is a traceback."""
        at = self.shown.find("Traceback")
        if at >= 0:
            raise FaultError(f"a traceback: {self.shown[at : at + 3000]}")

    # -- actions --

    def _resize(self, resize: Resize) -> None:
        for columns, rows in resize.sizes:
            self._feed()
            self._terminal.resize(columns, rows)
            self._screen.resize(rows, columns)
            self._terminal.read_for(0.01)

    def _interrupt(self) -> None:
        since = time.monotonic() - self._interrupted_at
        self._terminal.read_for(_INTERRUPTS_APART - since)
        self._terminal.type(INTERRUPT)
        self._interrupted_at = time.monotonic()

    def _pause(self, pause: Pause) -> None:
        self._may_stop = False
        if pause.by_key:
            self._terminal.type(_SUSPEND)
        elif not self.has_ended:
            self._terminal.process.send_signal(signal.SIGTSTP)
        # By the key only where the prompt has the focus.
        stopped = (self._wait if pause.by_key else self._comes)(self._is_stopped, 0.3)
        if not (stopped or pause.by_key or self.has_ended):
            raise FaultError(f"did not stop by SIGTSTP: {self._last_lines()}")
        if stopped and not self._terminal.is_cooked:
            raise FaultError("it is stopped, and the terminal is not as a shell wants it")
        # The key may be heard later than that.
        self._may_stop = pause.by_key and not stopped
        if not self.has_ended:
            self._terminal.process.send_signal(signal.SIGCONT)

    def _is_stopped(self) -> bool:
        try:
            return psutil.Process(self._terminal.process.pid).status() == psutil.STATUS_STOPPED
        except psutil.NoSuchProcess:
            return False

    def _type(self, word: str, paste: bytes, *, at_once: bool) -> None:
        if not at_once:
            self._calm()
        if self.has_ended:
            return
        began = time.monotonic()
        # On a line of its own, where it is not broken.
        self._terminal.type((pasted(paste) if paste else b"") + NEWLINE + word.encode())
        self._comes(partial(self._is_any_shown, word, _DIALOG), _SEEN_SECONDS)
        if self._is_any_shown(_DIALOG):
            # It has come since: a question was too long.
            self._type(word, paste, at_once=False)
            return
        if not self._is_any_shown(word) and not self.has_ended:
            raise FaultError(f"{word} was typed and is not seen: {self._picture()}")
        self.slowest = max(self.slowest, time.monotonic() - began)

    def _send(self, word: str) -> None:
        if self.has_ended:
            return
        before = len(self.shown)
        self._terminal.type(_ENTER)

        def is_taken() -> bool:
            # It may be gone from the screen by now.
            return self._kept.has(word) or _WAITS in self.shown[before:] or self.has_ended

        self._comes(lambda: is_taken() or self._is_any_shown(_DIALOG), _KEPT_SECONDS)
        # Of the time before Esc, which closes what there is.
        seen, told = self._text(), [each for each in _TOLD if each in self.shown[before:]]
        if not is_taken():
            # A dialog hides that it waits, for what is decided there; or an earlier key has opened
            # one, which took Enter.
            self._terminal.type(_ESCAPE)
            if not self._wait(is_taken, _SEEN_SECONDS) and self._is_any_shown(word):
                self.sent_again += 1
                self._terminal.type(_ENTER)
        lost = (
            f"{word} was sent, and neither waits nor is saved; told {told}, and seen\n{seen}\nthen"
        )
        self._demand(is_taken, _KEPT_SECONDS, lost)
        self._kept.look()
        # Where another one waits already, it is in the prompt again.
        if not self._kept.has(word) and word not in self._text():
            self._waiting = word

    def _edit(self, word: str) -> None:
        self._command("/edit")
        is_heard = partial(self._is_any_shown, "editing", *_REFUSED)
        if self._wait(is_heard, _SEEN_SECONDS) and self._is_any_shown("editing"):
            with self._kept.replacing():
                self._terminal.type(SELECT_ALL)
                self._type(word, b"", at_once=True)
                self._send(word)

    def _undo(self) -> None:
        self._command("/undo")
        self._terminal.read_for(patience(0.1))

    def _command(self, line: str) -> None:
        """Run it: what a slow chat did later would be another step's doing."""
        self._calm()
        at_prompt = partial(self._is_any_shown, _MARK + line)
        self._terminal.type(line.encode())
        self._comes(lambda: at_prompt() or self._is_any_shown(_DIALOG), _SEEN_SECONDS)
        self._terminal.type(_ENTER)
        self._comes(lambda: not at_prompt(), _SEEN_SECONDS)

    def _calm(self) -> None:
        """Close what is open, and empty the prompt; what was typed before has been done then."""
        self._waiting = None  # Esc takes back what waits
        deadline = time.monotonic() + _STARVED_SECONDS
        while not self.has_ended:
            self._marks += 1
            mark = f"mark{self._marks}."
            # What was typed before a stopped chat went on may be lost, the end of a paste too.
            self._terminal.type(_PASTE_ENDS + _ESCAPE + _ESCAPE + SELECT_ALL + mark.encode())
            is_heard = self._wait(partial(self._is_any_shown, mark, _DIALOG), _SEEN_SECONDS)
            self._terminal.type(SELECT_ALL + _BACKSPACE)
            if self._wait(partial(self._is_calm, mark), _CALM_SECONDS) and is_heard:
                return
            if time.monotonic() > deadline:
                raise FaultError(f"no way back to an empty prompt: {self._picture()}")

    def _is_calm(self, mark: str) -> bool:
        return self._is_any_shown(_EMPTY_PROMPT) and not self._is_any_shown(_DIALOG, mark)

    def _is_any_shown(self, *texts: str) -> bool:
        shown = self._text()
        return any(each in shown for each in texts)

    def _bring_to_end(self, end: End) -> None:
        if end in _KEYS:
            self._calm()
            for _ in range(_MOST_INTERRUPTS if end is End.INTERRUPTED else 1):
                self._terminal.type(_KEYS[end])
                if self._wait(lambda: self.has_ended, _HEARD_SECONDS):
                    break
        elif not self.has_ended:
            self._terminal.process.send_signal(signal.Signals[end.value])

    # -- what must hold --

    def _kept_or_seen(self) -> None:
        """What is not in the database any more is in the prompt."""
        for word in self._kept.vanished():
            self._demand(
                partial(self._is_kept_or_seen, word),
                _SEEN_SECONDS,
                f"{word} was saved, and is neither in the database nor on the screen",
            )

    def _is_kept_or_seen(self, word: str) -> bool:
        return word in self._text() or self._kept.has(word) or self.has_ended

    def _require_restored(self) -> None:
        modes = dict(_MODE.findall(self.shown))
        left = {mode for mode, state in modes.items() if state == "h"} - _STAY_ON
        if left or any(modes.get(each) == "l" for each in _STAY_ON):
            raise FaultError(f"the terminal is left with its modes {modes}")

    def _demand(self, holds: Callable[[], bool], seconds: float, otherwise: str) -> None:
        if not self._comes(holds, seconds):
            raise FaultError(f"{otherwise}: {self._picture()}")

    def _comes(self, holds: Callable[[], bool], seconds: float) -> bool:
        """Wait for what must come, on a machine that hardly lets the chat run too."""
        used, began = self._used(), time.monotonic()
        while not self._wait(holds, seconds):
            given, waited = self._used() - used, time.monotonic() - began
            had_its_time = given > _SHARE * seconds + _AT_REST * waited
            if had_its_time or self.has_ended or waited > _STARVED_SECONDS:
                self._given = f"given {given:.1f} s of a processor in {waited:.0f} s"
                return holds()
        return True

    def _wait(self, holds: Callable[[], bool], seconds: float) -> bool:
        """Wait for what may come."""
        deadline = time.monotonic() + patience(seconds)
        while not holds():
            if time.monotonic() > deadline or self.has_ended:
                return holds()
            self._terminal.read_some(_LOOK_SECONDS)
            if self._may_stop and self._is_stopped():
                self._may_stop = False
                self._terminal.process.send_signal(signal.SIGCONT)
        return True

    def _used(self) -> float:
        """Seconds of a processor that the chat has had."""
        try:
            times = psutil.Process(self._terminal.process.pid).cpu_times()
        except psutil.NoSuchProcess:
            return 0.0
        return float(times.user + times.system)

    # -- the screen --

    def _text(self) -> str:
        if self._fed < len(self.shown):
            self._feed()
            self._drawn = "\n".join(self._line(y) for y in range(self._screen.lines))
        return self._drawn

    def _line(self, y: int) -> str:
        """As pyte's own `display`, which stumbles over half a wide character."""
        row = self._screen.buffer[y]
        return "".join(row[x].data for x in range(self._screen.columns))

    def _feed(self) -> None:
        with suppress(IndexError):  # pyte's own, where a terminal has shrunk
            self._stream.feed(self.shown[self._fed :])
        self._fed = len(self.shown)

    def _picture(self) -> str:
        return f"{self._given}\n{self._text()}"

    def _last_lines(self) -> str:
        return repr(self.shown[-500:])
