"""What the monkey does, as values: a seed decides them all before anything is played.

So a script can be played again, or a part of it. Knows no terminal and no chat.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from random import Random

_ESCAPE = b"\x1b"
SELECT_ALL, NEWLINE = b"\x1b[18~", b"\n"
_KEYS = (
    *(b"\x1bOP", b"\x1bOQ", b"\x1bOR", b"\x1bOS", b"\x1b[15~"),  # F1 to F5
    *(b"\x1b[A", b"\x1b[B", b"\x1b[C", b"\x1b[D", b"\x1b[5~", b"\x1b[6~", b"\x1b[H", b"\x1b[F"),
    *(b"\x0f", b"\x0c", b"\x0e", b"\x12", b"\x14", b"\x19", _ESCAPE, b"\t", b"\x1b[Z"),
    *(b"\r", NEWLINE, b"\x7f", b"\x01", b"\x05", b"\x0b", b"\x15", b"\x17", b"\x18", b"\x1b[1;5F"),
)
# What ends the chat, stops its process, sends a signal, or opens the palette (where /undo is).
_NO_ACCIDENT = b"\x03\x04\x10\x11\x1a\x1c"
_BROKEN = (b"\x1b[", b"\x1b[9", b"\x1b]", b"\x1bP", b"\x1b_x", b"\x1b[200~", b"\x1b[201~")
_LONG_PASTES = (
    b"x" * 1_000_000,
    "word \u00e9\u4e2d\U0001f600 ".encode() * 9_000,
    b"\x1b[201~\r/quit\r" * 9,
    b"\x1b]0;title\x07\x1b[2J[bold]markup[/]\r\n" * 99,
)
_SHORT_PASTES = (
    b"",
    b"plain ",
    "\u4e2d\u6587\u5b57 \U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 e\u0301 ".encode(),
    b"\x07\x08\x1b[31mred\x1b[0m\x9b2J ",
    b"two\rlines\r",
)
_COMMANDS = (
    *("/new", "/new", "/fork", "/fork 1", "/fork 99", "/retry", "/retry", "/continue"),
    *("/kv f16", "/kv q4", "/kv h8", "/kv x", "/kv", "/ctx", "/ctx 512", "/ctx 768", "/ctx -1"),
    *("/model", "/model nosuch", "/model {model}", "/model {model}"),
    *("/theme", "/theme nord", "/theme ember-light", "/theme textual-ansi", "/theme \u202e"),
    *("/export", "/export chat.json", "/export /dev/zero", "/export ../..", "/screenshot"),
    *(
        "/set",
        "/set temp 9",
        "/set top_p nan",
        "/set max_tokens 0",
        "/set panes off",
        "/set keep 1",
    ),
    *("/set max_tokens 24", "/set hot 1e999", "/set think on", "/set ctx 0", "/set bell on"),
    *("/system be brief", "/system clear", "/system", "/sampling temp 2", "/sampling clear"),
    *("/prompt save mine {long}", "/prompt mine", "/prompt", "/prompt remove mine"),
    *("/copy", "/copy code", "/copy chat", "/title [bold]x", "/title {long}", "/think", "/panes"),
    *("/sessions", "/stats", "/help", "/bench", "/attach /etc/hosts", "/attach /dev/zero"),
    *("/nosuch", "/", "//", "/\u202e", "/set {long}", "/help x", "/fork \u00b2"),
)
_QUESTIONS = (b"hi\r", b"@/etc/passwd what\r", b"@/dev/zero\r", b"```\r", b"@", b"x" * 3000)
_COLUMNS, _ROWS = (20, 40, 59, 60, 80, 84, 99, 120, 250), (5, 8, 19, 20, 24, 26, 36, 60)
_WIDEST, _TALLEST = 130, 40


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Bytes that a terminal may send, from which nothing in particular follows."""

    data: bytes


@dataclass(frozen=True, kw_only=True)
class Interrupt:
    """Ctrl-C, once: what is typed before the next one takes longer than twice in a row."""


@dataclass(frozen=True, kw_only=True)
class Resize:
    """Columns and rows, one size right after the other."""

    sizes: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Pause:
    """The process is stopped, as by a shell, and goes on. by_key: by Ctrl-Z, not by a signal."""

    by_key: bool


@dataclass(frozen=True, kw_only=True)
class Type:
    """A word is typed, perhaps after a paste, and is seen. at_once: in whatever state one is."""

    word: str
    paste: bytes = b""
    at_once: bool = False


@dataclass(frozen=True, kw_only=True)
class Ask:
    """As `Type`, and sent: the word is in the database, or waits."""

    word: str
    paste: bytes = b""
    at_once: bool = False


@dataclass(frozen=True, kw_only=True)
class Edit:
    """The last question is replaced."""

    word: str


@dataclass(frozen=True, kw_only=True)
class Undo:
    """The last question is taken back: from the database into the prompt."""


Action = Keys | Interrupt | Resize | Pause | Type | Ask | Edit | Undo


class End(Enum):
    """How a window comes to its end."""

    QUIT = "Ctrl-Q"
    COMMAND = "/quit"
    INTERRUPTED = "Ctrl-C"
    SIGINT = "SIGINT"
    SIGTERM = "SIGTERM"
    SIGHUP = "SIGHUP"
    SIGKILL = "SIGKILL"
    HANG_UP = "its terminal goes"


@dataclass(frozen=True, kw_only=True)
class Script:
    """All that one window is put through. goes_on: it begins with the last chat."""

    actions: tuple[Action, ...]
    end: End
    goes_on: bool


def script_of(seed: int, window: str, *, model: str, length: int) -> Script:
    """What a seed has one window do; `window` begins each word that it types."""
    random = Random(f"{seed} {window}")
    actions = list[Action]()
    while len(actions) < length:
        number = f"{window}{len(actions):03}"
        made = random.choice(_MAKERS)(random, number)
        actions.append(made)
        if isinstance(made, Ask) and random.random() < 0.5:
            # While it is answered.
            follows = random.choice((Type, Ask))
            actions.append(follows(word=f"{window}{len(actions):03}", at_once=True))
    filled = tuple(_with_model(each, model) for each in actions[:length])
    return Script(
        actions=filled, end=random.choice(list(End)), goes_on=window > "a" and random.random() < 0.5
    )


def _with_model(action: Action, model: str) -> Action:
    if not isinstance(action, Keys):
        return action
    return Keys(data=action.data.replace(b"{model}", model.encode()))


def _any_key(random: Random, _word: str) -> Action:
    keys = random.choices(_KEYS, k=random.randint(1, 6))
    return Keys(data=b"".join(keys))


def _click(random: Random, _word: str) -> Action:
    button = random.choice((0, 0, 0, 1, 2, 4, 8, 16))
    at = _cell(random)
    return Keys(data=_mouse(button, at, "M") + _mouse(button, at, "m"))


def _drag(random: Random, _word: str) -> Action:
    cells = [_cell(random) for _ in range(random.randint(2, 6))]
    moves = b"".join(_mouse(32, each, "M") for each in cells)
    return Keys(data=_mouse(0, cells[0], "M") + moves + _mouse(0, cells[-1], "m"))


def _wheel(random: Random, _word: str) -> Action:
    return Keys(data=_mouse(random.choice((64, 65)), _cell(random), "M") * random.randint(1, 30))


def _cell(random: Random) -> tuple[int, int]:
    return random.randint(1, _WIDEST), random.randint(1, _TALLEST)


def _mouse(button: int, at: tuple[int, int], end: str) -> bytes:
    return f"\x1b[<{button};{at[0]};{at[1]}{end}".encode()


def _junk(random: Random, _word: str) -> Action:
    return Keys(data=random.randbytes(random.randint(1, 60)).translate(None, _NO_ACCIDENT))


def _broken(random: Random, _word: str) -> Action:
    return Keys(data=random.choice(_BROKEN))


def _long_paste(random: Random, _word: str) -> Action:
    return Keys(data=pasted(random.choice(_LONG_PASTES)))


def _command(random: Random, _word: str) -> Action:
    begins = random.choice((SELECT_ALL, SELECT_ALL, b""))
    text = random.choice(_COMMANDS).replace("{long}", "x" * 3000)
    return Keys(data=begins + text.encode() + b"\r")


def _question(random: Random, _word: str) -> Action:
    return Keys(data=random.choice(_QUESTIONS))


def _interrupt(_random: Random, _word: str) -> Action:
    return Interrupt()


def _resize(random: Random, _word: str) -> Action:
    count = random.choice((1, 1, 2, 12))
    sizes = [(random.choice(_COLUMNS), random.choice(_ROWS)) for _ in range(count)]
    return Resize(sizes=tuple(sizes))


def _pause(random: Random, _word: str) -> Action:
    return Pause(by_key=random.random() < 0.5)


def _type(random: Random, word: str) -> Action:
    return Type(word=word, paste=random.choice(_SHORT_PASTES))


def _ask(random: Random, word: str) -> Action:
    return Ask(word=word, paste=random.choice(_SHORT_PASTES))


def _edit(_random: Random, word: str) -> Action:
    return Edit(word=word)


def _undo(_random: Random, _word: str) -> Action:
    return Undo()


def pasted(text: bytes) -> bytes:
    """As a terminal hands on what is pasted."""
    return b"\x1b[200~" + text + b"\x1b[201~"


_MAKERS: Sequence[Callable[[Random, str], Action]] = (
    *(_any_key, _any_key, _any_key, _click, _click, _drag, _wheel, _junk, _broken, _long_paste),
    *(_command, _command, _command, _command, _question, _interrupt, _resize, _resize, _pause),
    *(_type, _type, _ask, _ask, _ask, _ask, _edit, _undo),
)
