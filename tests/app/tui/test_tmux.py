"""The chat in a terminal that draws: tmux keeps the screen, as a user would see it."""

import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from app import cli
from tests.app.terminal import inherited
from tests.patience import patience

ROOT = Path(cli.__file__).parent.parent
_SECONDS = 60

pytestmark = [
    pytest.mark.network,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed"),
]


class Screen:
    """A tmux server of its own with one window."""

    def __init__(self, socket: Path, environment: dict[str, str]) -> None:
        self._socket, self._environment = socket, {**inherited(), **environment}

    def open(self, *arguments: str) -> None:
        """Run ember in the window, 120 columns wide and 36 rows high; then show how it ended."""
        size = ["-x", "120", "-y", "36"]
        command = _shell_command(arguments)
        self._tmux("-f", "/dev/null", "new-session", "-d", *size, "-c", str(ROOT), command)

    def open_again(self, *arguments: str) -> None:
        """The same in the same window, once what ran there has ended."""
        self._tmux("respawn-window", "-k", "-c", str(ROOT), _shell_command(arguments))

    def close(self) -> None:
        subprocess.run(["tmux", "-S", self._socket, "kill-server"], check=False)

    def press(self, *keys: str) -> None:
        """Press keys by tmux's names; a text of several letters is typed."""
        self._tmux("send-keys", *keys)

    def resize(self, columns: int, rows: int) -> None:
        self._tmux("resize-window", "-x", str(columns), "-y", str(rows))
        self.wait_until(lambda: len(self.lines) == rows)

    @property
    def lines(self) -> list[str]:
        return self._tmux("capture-pane", "-p").splitlines()

    def wait_for(self, text: str) -> None:
        self.wait_until(lambda: any(text in line for line in self.lines))

    def wait_until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + patience(_SECONDS)
        while not holds():
            assert time.monotonic() < deadline, "\n".join(self.lines)
            time.sleep(0.05)

    def _tmux(self, *arguments: str) -> str:
        command = ["tmux", "-S", str(self._socket), *arguments]
        done = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, check=True
        )
        return done.stdout


def _shell_command(arguments: Sequence[str]) -> str:
    command = shlex.join([sys.executable, "-m", "app", *arguments])
    return f"{command}; echo ended with $?; sleep 600"


@pytest.fixture
def screen(tmp_path: Path) -> Iterator[Screen]:
    folders = {"XDG_DATA_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    screen = Screen(tmp_path / "tmux", {**folders, "LC_ALL": "C.UTF-8"})
    yield screen
    screen.close()


def test_a_conversation_at_every_size(screen: Screen, smollm2_file: Path) -> None:
    screen.open("chat", "-m", str(smollm2_file), "--ctx", "512", "--max-tokens", "60")
    screen.wait_for("Ask anything")
    screen.press("What is the capital of France?", "Enter")
    screen.wait_for("The capital of France is Paris.")
    screen.wait_for("full in")
    border = {line[85] for line in screen.lines[1:30]}
    assert border <= {"│", "─", "├"}
    for columns, rows in ((80, 24), (60, 20), (120, 36)):
        screen.resize(columns, rows)
        screen.wait_until(lambda: "⏎ Send" in screen.lines[-1])
        screen.wait_for("Paris.")
        screen.press("F1")
        screen.wait_for("─ Help ─")
        screen.press("Escape")
        screen.wait_until(lambda: not any("─ Help ─" in line for line in screen.lines))
    screen.press("C-q")
    screen.wait_for("ended with 0")


def test_it_goes_on_where_it_was(screen: Screen, smollm2_file: Path) -> None:
    model = ["-m", str(smollm2_file), "--ctx", "512"]
    screen.open("chat", *model)
    screen.wait_for("Ask anything")
    screen.press("What is the capital of France?", "Enter")
    screen.wait_for("/s, first after")
    screen.press("C-q")
    screen.wait_for("ended with 0")
    screen.open_again("chat", *model, "--continue")
    screen.wait_for("The capital of France is Paris.")
