"""A model's file is cut, changed or replaced while it is in use: one line, and never a signal."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs
import pytest

from tests.app.conftest import write_tiny
from tests.app.terminal import END, QUIT, READS_LINE, ROOT, Terminal, inherited
from tests.scripted_model import write_scripted

Change = Callable[[Path], object]
ENDLESS = ("--max-tokens", "1000000", "--allow-loops", "--raw", "--backend", "cpu")
CUT = 9001


def _cut(path: Path) -> None:
    os.truncate(path, CUT)


def _overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\xff" * 1000)


def _copy_over(path: Path) -> None:
    other = path.with_name("other.gguf")
    write_tiny(other)
    shutil.copyfile(other, path)


CHANGES: dict[str, tuple[Change, str]] = {
    "cut": (_cut, f"was cut to {CUT} bytes while in use; get it again"),
    "emptied": (lambda path: os.truncate(path, 0), "was cut to 0 bytes while in use; get it again"),
    "overwritten": (_overwrite, "was changed while in use; load it again"),
    "copied over": (_copy_over, "while in use; "),
}


REPLACED: dict[str, Change] = {
    "replaced": lambda path: write_tiny(path.with_name("b.gguf")).replace(path),
    "removed": lambda path: path.unlink(),
    "moved": lambda path: path.rename(path.with_name("moved.gguf")),
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Counts for ever."""
    path = tmp_path / "counts.gguf"
    write_scripted(path, [b"one ", b"two ", b"three "], endless=True)
    os.utime(path, ns=(10**18, 10**18))
    return path


@pytest.fixture
def environment(folders: dict[str, str]) -> dict[str, str]:
    """Folders of our own, but for that of the kernels, which take long to compile."""
    kernels = os.environ.get("EMBER_CACHE") or str(platformdirs.user_cache_path("ember"))
    return {**folders, "EMBER_CACHE": kernels}


@contextmanager
def _running(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "app", *map(str, arguments)]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=ROOT, env=inherited(), stdout=pipe, stderr=pipe, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code, and the last line of errors; there may be no traceback."""
    _, errors = process.communicate(timeout=120)
    assert "Traceback" not in errors
    return process.returncode, errors.splitlines()[-1]


@pytest.mark.parametrize("change", CHANGES)
def test_while_it_answers(model: Path, change: str) -> None:
    make, message = CHANGES[change]
    with _running("run", "-m", model, "-p", "hi", *ENDLESS) as process:
        assert process.stdout is not None
        assert process.stdout.read(200).startswith("one two three one ")
        make(model)
        code, said = _ended(process)
    assert code == 1
    assert said.startswith(f"ember: error: {model}: ")
    assert message in said


@pytest.mark.parametrize("case", REPLACED)
def test_another_file_in_its_place_changes_nothing(model: Path, case: str) -> None:
    with _running("run", "-m", model, "-p", "hi", *ENDLESS, "--max-tokens", "2999") as process:
        assert process.stdout is not None
        begun = process.stdout.read(200)
        REPLACED[case](model)
        # Not `communicate`, which leaves out what was read with the beginning.
        rest = process.stdout.read()
        assert process.wait(timeout=120) == 0
    assert (begun + rest).split() == ["one", "two", "three"] * 999 + ["one", "two"]


# Does something to the file before the kernels' call of a number, then what the command does.
AT_A_CALL = """
import os, sys
from app import __main__
from models.native.kernels import Kernels

path, number, *sys.argv[1:] = sys.argv[1:]
calls, real = 0, Kernels.layers

def layers(*arguments, **more):
    global calls
    calls += 1
    if calls == int(number):
        os.truncate(path, 0)
    return real(*arguments, **more)

Kernels.layers = layers
sys.argv[0] = "ember"
__main__.main()
"""
COMMANDS: dict[str, tuple[int, tuple[str, ...]]] = {
    "a prompt": (2, ("run", "-p", "word " * 400, "--truncate", "--raw")),
    "a batch": (9, ("run", "--prompts-file", "PROMPTS", "--raw")),
    "bench": (9, ("bench", "claim", "--lengths", "5000", "--seconds", "60")),
    "perplexity": (2, ("perplexity", "PROMPTS", "--ctx", "256", "--skip", "0")),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_while_it_works(model: Path, tmp_path: Path, command: str) -> None:
    prompts = tmp_path / "prompts"
    prompts.write_text("one two three " * 100 + "\nb\n")
    number, arguments = COMMANDS[command]
    given = [str(prompts) if each == "PROMPTS" else each for each in arguments]
    done = subprocess.run(
        [sys.executable, "-c", AT_A_CALL, model, str(number), *given, "-m", model],
        cwd=ROOT,
        env=inherited(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == 1, done.stderr
    assert f"{model}: was cut to 0 bytes while in use; get it again" in done.stderr.splitlines()[-1]


# The file is cut once the first matrix is there.
AT_LOAD = """
import os, sys
from kvcache import Backend, EmberError
from models import load

path, backend = sys.argv[1:]
cut = []

def progress(done, total):
    assert done <= total
    if not cut:
        cut.append(os.truncate(path, 9001))

try:
    load(path, backend=Backend(backend), progress=progress)
except EmberError as error:
    print(error)
assert cut
"""


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_while_it_is_loaded(model: Path, backend: str) -> None:
    command = [sys.executable, "-c", AT_LOAD, model, backend]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{model}: was cut to 9001 bytes while in use; get it again\n"


def test_a_chat_says_so_and_goes_on(model: Path, environment: dict[str, str]) -> None:
    terminal = Terminal("chat", "--plain", *ENDLESS[:3], "-m", str(model), environment=environment)
    terminal.wait_for(READS_LINE)
    terminal.type(b"hi\n")
    terminal.wait_for("one two three one ")
    _cut(model)
    terminal.wait_for(f"was cut to {CUT} bytes while in use; get it again")
    terminal.type(b"hi again\n" + END)
    assert terminal.close() == 0
    assert terminal.shown.count("was cut to") == 2
    assert "Traceback" not in terminal.shown


def test_the_full_screen_says_so_and_takes_another_model(
    model: Path, environment: dict[str, str]
) -> None:
    other = model.with_name("other.gguf")
    shutil.copyfile(model, other)
    terminal = Terminal("chat", *ENDLESS[:3], "-m", str(model), environment=environment)
    terminal.wait_for("Ask anything")
    terminal.type(b"hi\r")
    terminal.wait_for("one two three")
    os.truncate(model, 0)
    terminal.wait_for("was cut to 0 bytes while in use")
    terminal.type(f"/model {other}\r".encode())
    terminal.wait_for_more(300)
    terminal.type(b"more\r")
    terminal.wait_for_more(2000)
    terminal.type(QUIT)
    assert terminal.close() == 0
    assert "Traceback" not in terminal.shown
