"""Terminals that cannot show the full screen get lines, and one that says why."""

import os
import re
import select
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.app.terminal import END, QUIT, READS_LINE, ROOT, Terminal, inherited
from tests.patience import patience
from tests.scripted_model import write_scripted

_SEQUENCE = re.compile(r"[\x1b\x9b\x08]")
PLAIN_C = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thinks, and says hello."""
    path = tmp_path_factory.mktemp("models") / "says.gguf"
    write_scripted(path, [b"hel", b"lo"])
    return path


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({"TERM": "dumb"}, "TERM=dumb is a terminal without a full screen"),
        ({"TERM": ""}, "TERM=dumb is a terminal"),
        ({"TERM": "unknown"}, "TERM=unknown is a terminal"),
    ],
    ids=["dumb", "unset", "unknown"],
)
def test_a_terminal_that_obeys_nothing_is_sent_no_sequences(
    model: Path, folders: dict[str, str], environment: dict[str, str], why: str
) -> None:
    command = ("chat", "-m", str(model), "--backend", "reference")
    terminal = Terminal(*command, environment=folders | environment)
    terminal.wait_for(f"{why}; this is the chat line by line" if "full" in why else why)
    terminal.wait_for("\r\n> ")
    terminal.type(b"hi\n")
    terminal.wait_for("hello")
    terminal.wait_for("tok/s · answer")
    terminal.type(END)
    terminal.wait_for("`ember chats resume 1` goes on with")
    assert terminal.close() == 0
    assert not _SEQUENCE.search(terminal.shown)


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({"LC_ALL": "C"}, "the locale C has no characters for the full screen"),
        ({"LC_ALL": "", "LANG": "POSIX"}, "the locale POSIX has no characters"),
        (PLAIN_C, "has no characters for the full screen: take a UTF-8 locale"),
        ({"PYTHONIOENCODING": "latin-1"}, "has no characters for the full screen"),
    ],
    ids=["C", "POSIX", "ascii", "latin-1"],
)
def test_a_locale_that_cannot_show_the_drawing_gets_lines(
    model: Path, folders: dict[str, str], environment: dict[str, str], why: str
) -> None:
    command = ("chat", "-m", str(model), "--backend", "reference")
    terminal = Terminal(*command, environment=folders | environment)
    terminal.wait_for(why)
    terminal.wait_for(READS_LINE)
    terminal.type(b"hi\r")
    terminal.wait_for("hello")
    terminal.type(END)
    assert terminal.close() == 0
    assert "\x1b[?1049h" not in terminal.shown
    assert "Traceback" not in terminal.shown


def test_where_no_locale_is_set_the_screen_is_drawn(model: Path, folders: dict[str, str]) -> None:
    """As in containers, whose terminals are the user's own."""
    unset = dict.fromkeys(("LC_ALL", "LANG", "LC_CTYPE"), "")
    command = ("chat", "-m", str(model), "--backend", "reference")
    terminal = Terminal(*command, environment=folders | unset)
    terminal.wait_for("Ask anything")
    terminal.type(QUIT)
    assert terminal.close() == 0


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_stream_that_is_no_terminal_is_sent_no_sequences(
    model: Path, folders: dict[str, str], stream: str
) -> None:
    """The other two are one; what is said on stdout is answered all the same."""
    reading, writing = os.pipe()
    master, slave = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "chat", "-m", str(model), "--backend", "reference"],
        cwd=ROOT,
        env={**inherited(), **folders},
        start_new_session=True,
        stdin=slave,
        stdout=writing if stream == "stdout" else slave,
        stderr=writing if stream == "stderr" else slave,
    )
    os.close(writing)
    os.close(slave)
    os.write(master, b"hi\n")
    piped = shown = b""
    until, leaves = time.monotonic() + patience(20), False
    while process.poll() is None:
        assert time.monotonic() < until, (piped, shown)
        if not leaves and b"hello" in piped + shown:
            leaves = bool(os.write(master, END))
        ready, _, _ = select.select([reading, master], [], [], 0.1)
        with suppress(OSError):  # how a pseudo-terminal says that the other side has gone
            shown += os.read(master, 1 << 16) if master in ready else b""
        piped += os.read(reading, 1 << 16) if reading in ready else b""
    assert process.returncode == 0
    while came := os.read(reading, 1 << 16):
        piped += came
    assert not _SEQUENCE.search(piped.decode())
    assert b"\x1b[?1049h" not in shown
    assert b"hello" in (piped if stream == "stdout" else shown)
    for each in (reading, master):
        os.close(each)
