"""Output that cannot be written, input that cannot be read, and readers that leave."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.inert import inert
from app.streams import Output
from tests.app.terminal import ROOT
from tests.scripted_model import write_scripted

SECONDS = 120
ANSWER = "naïve ✓ größer 🙂"
RUN = "run -m $SAYS --raw -p x"
LONG = "--max-tokens 300000 --allow-loops"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """SAYS says ANSWER, COUNTS counts for ever."""
    folder = tmp_path_factory.mktemp("models")
    found = {"SAYS": folder / "says.gguf", "COUNTS": folder / "counts.gguf"}
    words = ["naïve", " ✓", " größer", " 🙂"]
    write_scripted(found["SAYS"], [word.encode() for word in words])
    numbers = [b"one ", b"two ", b"three\n"]
    write_scripted(found["COUNTS"], numbers, endless=True, context=1_000_000)
    return {name: str(path) for name, path in found.items()}


def shell(
    line: str, models: Mapping[str, str], *, stdin: bytes = b"", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """Run a line of bash, in which $E is the program."""
    given = {**os.environ, **models, **environment, "E": f"{sys.executable} -m app"}
    return subprocess.run(
        ["bash", "-c", line],
        capture_output=True,
        cwd=ROOT,
        env=given,
        input=stdin,
        timeout=SECONDS,
        check=False,
    )


# -- what cannot be written --


@pytest.mark.parametrize(
    "line",
    [
        f"$E {RUN} >/dev/full",
        f"$E {RUN} --json >&-",
        "$E ls >/dev/full",
        "$E ls >&-",
        "$E --help >/dev/full",
        "printf 'a\\nb\\n' | $E chat --plain -m $SAYS >/dev/full",
        "$E chat --plain -m $SAYS >&- </dev/null",
    ],
)
def test_a_refused_output_is_one_line_and_exit_1(line: str, models: dict[str, str]) -> None:
    done = shell(line, models)
    assert done.returncode == 1, done.stderr
    said = [text for text in done.stderr.decode().splitlines() if "plain MLX runs them" not in text]
    (error,) = said
    assert error.startswith("ember: error: cannot write to stdout: ")
    assert done.stdout == b""


@pytest.mark.parametrize("where", ["2>&-", "2>/dev/full"])
def test_an_answer_needs_no_stderr(where: str, models: dict[str, str]) -> None:
    done = shell(f"$E {RUN} {where}", models)
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, f"{ANSWER}\n", b"")


def test_a_closed_stdin_is_one_line_where_it_is_needed(models: dict[str, str]) -> None:
    for command in ("run -m $SAYS", "tokenize -m $SAYS -", "chat --plain -m $SAYS"):
        done = shell(f"$E {command} <&-", models)
        assert done.returncode == 1
        assert b"ember: error: cannot read stdin: Bad file descriptor\n" in done.stderr
        assert b"Traceback" not in done.stderr
    assert shell(f"$E {RUN} <&-", models).stdout.decode() == f"{ANSWER}\n"


def test_no_file_takes_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    program = (
        "from app.streams import prepare; import sys, pathlib; prepare()\n"
        f"file = open({str(tmp_path / 'file')!r}, 'w')\n"
        "assert file.fileno() > 2\n"
        "print('for stderr', file=sys.stderr)\n"
    )
    line = f'{sys.executable} -c "$PROGRAM" <&- >&- 2>&-'
    assert shell(line, {"PROGRAM": program}).returncode == 0
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({"PYTHONIOENCODING": "latin-1"}, b"na\xefve \\u2713 gr\xf6\xdfer \\U0001f642"),
        (
            {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
            b"na\\xefve \\u2713 gr\\xf6\\xdfer \\U0001f642",
        ),
        ({"LC_ALL": "C"}, ANSWER.encode()),
    ],
    ids=["latin-1", "C", "C-coerced"],
)
def test_any_encoding_takes_any_answer(
    environment: dict[str, str], shown: bytes, models: dict[str, str]
) -> None:
    done = shell(f"$E {RUN}; $E {RUN} --json", models, **environment)
    assert done.returncode == 0, done.stderr
    answer, found, *_ = done.stdout.splitlines()
    assert answer == shown
    encoding = environment.get("PYTHONIOENCODING", "utf-8")
    assert json.loads(found.decode(encoding))["text"] == ANSWER


def test_what_the_locale_cannot_read_is_read_as_utf_8(models: dict[str, str]) -> None:
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    line = "$E tokenize -m $SAYS --no-special --json"
    given = shell(f"{line} größer", models, **environment)
    piped = shell(f"{line} -", models, stdin="größer".encode(), **environment)
    assert given.stdout == piped.stdout == shell(f"{line} größer", models).stdout
    assert len(json.loads(given.stdout)["ids"]) == 8


# -- readers that leave --


@pytest.mark.parametrize(
    "line",
    [
        f"$E run -m $COUNTS -p x {LONG} | head -c 10",
        f"$E run -m $COUNTS -p x {LONG} --json | true",
        f"$E run -m $COUNTS --prompts-file <(echo a; echo b) {LONG} | true",
        f"$E chat --plain -m $COUNTS {LONG} <<<hi | head -c 300",
        "$E perplexity <(yes | head -c 1000000) -m $COUNTS | true",
    ],
)
def test_a_reader_that_leaves_stops_the_generation(line: str, models: dict[str, str]) -> None:
    # Or it would run beyond the time limit.
    done = shell(f"{line}; exit ${{PIPESTATUS[0]}}", models)
    assert done.returncode == 141, done.stderr
    assert done.stderr.count(b"\n") == done.stderr.count(b"plain MLX runs them")


def test_a_reader_that_leaves_ends_the_tables(tmp_path: Path) -> None:
    results = tmp_path / "a.json"
    results.write_text('{"schema": 1, "env": {}, "rows": []}')
    line = f"$E bench compare {results} {results} | true; exit ${{PIPESTATUS[0]}}"
    done = shell(line, {})
    assert (done.returncode, done.stderr) == (141, b"")


# -- the streams themselves --


@contextmanager
def opened(ends: tuple[int, int]) -> Iterator[tuple[int, Output]]:
    """The reading end, and an output over the other."""
    reading, writing = ends
    output = Output(writing, "utf-8")
    yield reading, output
    output.drop()
    output.flush()
    os.close(reading)
    os.close(writing)


@given(st.lists(st.text(st.sampled_from("a\x1b[m\r\n\x9b\u202eé\ud800"), max_size=5), max_size=9))
def test_a_terminal_gets_what_is_inert_however_it_is_cut(chunks: list[str]) -> None:
    with opened(os.openpty()) as (reading, output):
        for chunk in [*chunks, "."]:
            output.write(chunk)
        output.flush()
        shown = b""
        while not shown.endswith(b"."):
            shown += os.read(reading, 4096)
    assert shown.decode().replace("\r\n", "\n") == inert("".join(chunks) + ".")


def test_a_pipe_gets_every_byte() -> None:
    text = "\x1b[31m\r\n\x9b\u202e\udcff\t\x00é"
    with opened(os.pipe()) as (reading, output):
        output.write(text)
        output.flush()
        assert os.read(reading, 100) == text.encode(errors="surrogateescape")


def test_a_refusal_is_told_again_until_it_is_dropped() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    kept = os.dup(1)
    try:
        os.dup2(writing, 1)
        output = Output(1, "utf-8")
        output.write("x")
        for _ in range(2):
            with pytest.raises(BrokenPipeError):
                output.flush()
        output.drop()
        output.write("y")
        output.flush()
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(writing)


# -- Ctrl-C before anything runs --

_INTERRUPTED_START = """
import runpy, sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "app.cli":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupting())
runpy.run_module("app", run_name="__main__")
"""


def test_ctrl_c_while_ember_starts_is_one_line() -> None:
    command = [sys.executable, "-c", _INTERRUPTED_START]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "ember: interrupted\n")


@pytest.mark.parametrize(
    "command",
    [
        ["run", "-p", "x", "-m", "MODEL"],
        ["chat", "--plain", "-m", "MODEL"],
        ["perplexity", "MODEL", "-m", "MODEL"],
        ["bench", "memory", "-m", "MODEL"],
        ["doctor"],
    ],
    ids=lambda command: command[0],
)
def test_ctrl_c_stops_the_compiler(
    command: list[str], models: dict[str, str], tmp_path: Path
) -> None:
    compiler, started = tmp_path / "compiler", tmp_path / "started"
    compiler.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && exit\necho $$ >{started}.new\n'
        f"mv {started}.new {started}\nsleep 600\n"
    )
    compiler.chmod(0o755)
    text = tmp_path / "text"
    text.write_text("a text " * 200)
    arguments = [models["SAYS"] if each == "MODEL" else each for each in command]
    if command[0] == "perplexity":
        arguments[1] = str(text)
    process = subprocess.Popen(
        [sys.executable, "-m", "app", *arguments],
        cwd=ROOT,
        env=os.environ | {"CXX": str(compiler), "EMBER_CACHE": str(tmp_path / "cache")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + SECONDS
    while not started.exists() and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=SECONDS)
    said = err.removeprefix("ember: compiling the kernels (once)\n")
    assert (process.returncode, out, said) == (130, "", "ember: interrupted\n")
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)
    assert list((tmp_path / "cache" / "native").iterdir()) == []
