"""Files for the user: new ones only, whole or not at all."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app import new_file
from app.staged import staged
from kvcache import EmberError

_KILLED = """
import os, signal, sys
from pathlib import Path
from app import new_file
def fail(handle):
    os.kill(os.getpid(), signal.SIGKILL)
os.fsync = fail
new_file.write(Path(sys.argv[1]), "half a chat" * 10000)
"""


def test_a_new_file_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "chat.md"
    new_file.write(path, "one\n")
    with pytest.raises(EmberError, match="exists already: name another file"):
        new_file.write(path, "two\n")
    assert path.read_text() == "one\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_without_links_takes_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_link(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", no_link)
    test_a_new_file_is_written_once(tmp_path)


def test_a_kill_amid_a_write_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    path = tmp_path / "chat.md"
    done = subprocess.run([sys.executable, "-c", _KILLED, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not path.exists()
    (left,) = tmp_path.iterdir()
    new_file.write(path, "whole")
    assert path.read_text() == "whole"
    # Another program may still be at work on it.
    assert left.exists()
    os.utime(left, (0, 0))
    with staged(path, "more"):
        assert not left.exists()
