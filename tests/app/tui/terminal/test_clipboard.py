"""A text is said to be copied only where it was."""

from pathlib import Path

import pytest

from app.tui.terminal.clipboard import Copied, copy

TAKES = "#!/bin/sh\ncat > {}\n"


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder that all programs are looked for in, and no terminal that is known."""
    for name in ("SSH_CONNECTION", "TMUX", "STY", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    return tmp_path


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


def test_a_program_that_takes_it_has_copied_it(bare: Path) -> None:
    program(bare, "pbcopy", TAKES.format(bare / "taken"))
    sent: list[str] = []
    assert copy("äb", sent.append) is Copied.CLIPBOARD
    assert (bare / "taken").read_text(encoding="utf-8") == "äb"
    assert sent == []


def test_a_program_that_fails_leaves_it_to_the_terminal(bare: Path) -> None:
    program(bare, "pbcopy", "#!/bin/sh\nexit 1\n")
    sent: list[str] = []
    assert copy("ab", sent.append) is Copied.TERMINAL
    assert sent == ["ab"]
    assert "copied" not in Copied.TERMINAL.value


def test_tmux_takes_it_for_itself(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(bare, "pbcopy", "#!/bin/sh\nexit 1\n")
    program(bare, "tmux", f'#!/bin/sh\necho "$@" > {bare}/asked\ncat > {bare}/taken\n')
    monkeypatch.setenv("TMUX", "/tmp/tmux,1,0")
    sent: list[str] = []
    assert copy("ab", sent.append) is Copied.TMUX
    assert (bare / "asked").read_text() == "load-buffer -w -\n"
    assert (bare / "taken").read_text() == "ab"
    assert sent == []
    program(bare, "tmux", "#!/bin/sh\nexit 1\n")
    assert copy("ab", sent.append) is Copied.TERMINAL
    assert sent == ["ab"]


def test_screen_passes_nothing_on_and_that_is_said(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(bare, "pbcopy", "#!/bin/sh\nexit 1\n")
    monkeypatch.setenv("STY", "1.tty")
    sent: list[str] = []
    assert copy("ab", sent.append) is Copied.NOWHERE
    assert sent == []
    assert Copied.NOWHERE.value.startswith("not copied")
