"""A home in which nothing can be made: what needs no file works, what does says so in a line."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.app.terminal import ROOT
from tests.own_home import own_home

# Not even root makes a file there.
_HOME = "/proc/ember"


def _said(path: Path, *arguments: str, cache: str, lines: str = "") -> tuple[int, str, str]:
    environment = own_home(path) | {"HOME": _HOME, "HF_HOME": _HOME}
    if cache:
        environment["EMBER_CACHE"] = cache
    done = subprocess.run(
        [sys.executable, "-m", "app", *arguments],
        cwd=ROOT,
        env=environment,
        input=lines,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def test_a_prompt_is_answered_where_not_even_kernels_can_be_kept(
    tiny_path: Path, tmp_path: Path
) -> None:
    arguments = ("run", str(tiny_path), "hello", "--max-tokens", "4", "--ctx", "128")
    code, out, err = _said(tmp_path, *arguments, cache=_HOME)
    assert code == 0, err
    assert out.strip()
    assert "cannot" in err


def test_a_chat_is_answered_and_told_that_it_is_not_saved(tiny_path: Path, tmp_path: Path) -> None:
    arguments = ("chat", str(tiny_path), "--plain", "--continue", "--max-tokens", "4")
    code, out, err = _said(tmp_path, *arguments, cache="", lines="hello\nand again\n")
    assert code == 0, err
    assert out.strip()
    assert "chats" in err


@pytest.mark.parametrize(
    "arguments", [("chats",), ("chats", "import", "chat.json"), ("pull", "hf:nobody/nothing")]
)
def test_what_cannot_be_done_is_one_line(arguments: tuple[str, ...], tmp_path: Path) -> None:
    code, _, err = _said(tmp_path, *arguments, cache="")
    assert code in (0, 1)
    assert err.count("\n") <= 1, err
