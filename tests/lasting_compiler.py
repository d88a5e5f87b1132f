"""A compiler that does not end by itself, and whoever waits to hear of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import patience

ROOT = Path(__file__).parents[1]


def words_of_a_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch, *program: str) -> str:
    """What a compiler says that a program has begun, once both ended: nothing, if it was ended.

    program: lines, of which WAIT waits until the compiler runs.
    """
    compiler, pipe = folder / "compiler", folder / "pipe"
    compiler.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exit\n'
        f"exec 3>{pipe}\ntouch {pipe}-open\nsleep {patience(60):.0f}\necho survived >&3\n"
    )
    compiler.chmod(0o755)
    os.mkfifo(pipe)
    runs = f"while not pathlib.Path('{pipe}-open').exists():\n    time.sleep(0.01)"
    text = "\n".join(["import pathlib, time", *program]).replace("WAIT", runs)
    monkeypatch.setenv("CXX", str(compiler))
    process = subprocess.Popen([sys.executable, "-c", text], cwd=ROOT)
    said = pipe.read_text()
    assert process.wait() == 0
    return said
