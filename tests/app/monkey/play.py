"""One seed: two windows on the same folders at the same time, and what came of it."""

import subprocess
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Timer

from kvcache.cache_folder import cache_folder
from tests.app.monkey.actions import Action, Ask, End, Script, Type, script_of
from tests.app.monkey.kept import FaultError, Kept, require_sound
from tests.app.monkey.window import Window
from tests.app.terminal import ROOT, Terminal
from tests.patience import patience

_WINDOWS = "ab"
_LIMITS = ("--ctx", "1024", "--max-tokens", "48")
_HANG_SECONDS = 300.0
_MADE_ONCE = ("native", "metrics")  # folders of ember's cache


@dataclass(frozen=True, kw_only=True)
class Game:
    """What is played, over and over with other seeds.

    model: its file. length: actions of each window. options: of `chat`. cache: a folder for
    ember's cache.
    """

    model: Path
    cache: Path
    length: int = 24
    options: tuple[str, ...] = ()

    def scripts(self, seed: int) -> list[Script]:
        """What a seed puts each window through."""
        return [
            script_of(seed, each, model=str(self.model), length=self.length) for each in _WINDOWS
        ]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """faults: what did not hold. slowest: seconds until a typed word was seen, at most.

    sent_again: as `Window` has it, of both.
    """

    faults: Sequence[str]
    slowest: float
    ended_early: int
    sent_again: int


Tell = Callable[[str], None]


def play(
    game: Game,
    seed: int,
    steps: Collection[int] | None = None,
    tell: Tell = lambda _line: None,
) -> Outcome:
    """Play a seed, or some steps of it, which are numbered through both windows from 0.

    tell: is called with each step before it is taken.
    """
    chosen = range(len(_WINDOWS) * game.length) if steps is None else steps
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        return _Play(game, Path(folder), chosen, tell).outcome(game.scripts(seed))


@contextmanager
def own_cache() -> Iterator[Path]:
    """A cache folder of its own that has what takes a while to be made, kernels for one."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for name in _MADE_ONCE:
            made = cache_folder() / name
            made.mkdir(parents=True, exist_ok=True)
            (Path(folder) / name).symlink_to(made)
        yield Path(folder)


class _Play:
    def __init__(self, game: Game, folder: Path, steps: Collection[int], tell: Tell) -> None:
        self._game, self._folder, self._steps, self._tell = game, folder, steps, tell
        self._faults = list[str]()
        self._early = 0

    def outcome(self, scripts: Sequence[Script]) -> Outcome:
        """Play it all."""
        terminals = [self._terminal(goes_on=each.goes_on) for each in scripts]
        for each in terminals:
            each.wait_until(self._has_database)
        kept = [Kept(self._database, each) for each in _WINDOWS]
        windows = [Window(*each) for each in zip(terminals, kept, strict=True)]
        with self._no_hang(windows), ThreadPoolExecutor(len(windows)) as threads:
            list(threads.map(self._put_through, windows, scripts, range(len(windows))))
        for words in kept:
            self._hold(words.require)
        self._hold(lambda: require_sound(self._database))
        if any(each.end is End.SIGKILL for each in scripts):
            self._hold(self._go_on)
        slowest = max(each.slowest for each in windows)
        return Outcome(
            faults=self._faults,
            slowest=slowest,
            ended_early=self._early,
            sent_again=sum(each.sent_again for each in windows),
        )

    def _put_through(self, window: Window, script: Script, at: int) -> None:
        """One window's part; a fault ends it."""

        def run() -> None:
            window.start()
            for index, action in enumerate(script.actions):
                number = at * self._game.length + index
                if number in self._steps and not window.has_ended:
                    made = action if number - 1 in self._steps else _after_others(action)
                    self._tell(f"{_WINDOWS[at]} {number}: {_told(made)}")
                    window.do(made)
            self._early += window.has_ended
            self._tell(f"{_WINDOWS[at]} ends: {script.end.value}")
            window.end(script.end)

        if not self._hold(run, where=_WINDOWS[at]):
            self._faults.append(f"{_WINDOWS[at]} was doing this then:\n{window.stacks()}")
        self._hold(window.require_no_traceback, where=_WINDOWS[at])
        window.kill()

    def _go_on(self) -> None:
        """After a kill, the last chat opens and nothing has been lost."""
        terminal = self._terminal(goes_on=True)
        window = Window(terminal, Kept(self._database, "c"))
        window.start()
        window.end(End.QUIT)
        window.require_no_traceback()
        require_sound(self._database)

    def _hold(self, run: Callable[[], None], where: str = "at the end") -> bool:
        """Whether that holds."""
        try:
            run()
        except FaultError as fault:
            self._faults.append(f"{where}: {fault}")
        except subprocess.TimeoutExpired:
            self._faults.append(f"{where}: it does not end")
        else:
            return True
        return False

    @contextmanager
    def _no_hang(self, windows: Sequence[Window]) -> Iterator[None]:
        """A window that has its terminal wait for ever is ended, which is a fault."""

        def end() -> None:
            self._faults.append("a window hangs, and was killed")
            for each in windows:
                each.kill()

        timer = Timer(patience(_HANG_SECONDS), end)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _terminal(self, *, goes_on: bool) -> Terminal:
        return Terminal(
            *("chat", "-m", str(self._game.model), *_LIMITS, *self._game.options),
            *(("--continue",) if goes_on else ()),
            environment=self._environment(),
            folder=self._folder,
        )

    def _environment(self) -> dict[str, str]:
        """Folders of its own, no network, and a clipboard that is the terminal's."""
        folders = ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME")
        return {
            **dict.fromkeys(folders, str(self._folder)),
            **dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9"),
            "EMBER_CACHE": str(self._game.cache),
            "PYTHONPATH": str(ROOT),
            "PYTHONFAULTHANDLER": "1",
            "SSH_CONNECTION": "none",
        }

    def _has_database(self) -> bool:
        return any(self._folder.rglob("chats.db"))

    @property
    def _database(self) -> Path:
        (found,) = self._folder.rglob("chats.db")
        return found


def _after_others(action: Action) -> Action:
    """An action that followed another at once, where that is left out."""
    return replace(action, at_once=False) if isinstance(action, Type | Ask) else action


def _told(action: Action) -> str:
    said = repr(action)
    return said if len(said) < 200 else f"{said[:160]}… ({len(said)} characters)"
