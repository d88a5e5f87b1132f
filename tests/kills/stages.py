"""What ember may be ended in, and what must hold of its folders afterwards."""

import json
import os
import re
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest

from app.sessions.chat import Chat, ChatMessage
from app.sessions.export import as_json
from app.wake.folder import PieceFolder
from app.wake.piece import about_in, ended
from models.text.messages import Role
from tests.app.conftest import write_tiny
from tests.app.monkey.kept import require_sound
from tests.models.finding.hub_server import running_hub
from tests.own_home import KERNELS, own_home

_MESSAGES, _SUM_BYTES = 60, 4
_REPOSITORY, _FILE = "someone/tiny-GGUF", "tiny.Q8_0.gguf"
# As `tempfile` and ember name what is begun.
_BEGUN = re.compile(r"^tmp\w{8}$|^compiling-|^keeping-|^\..+-\w{8}$|\.(tmp|partial|incomplete)$")
# How the line chat asks, which no answer that ends with its line says.
ASKS = b"\n> "
_ANSWER = ("--max-tokens", "8", "--ctx", "128")


@dataclass(frozen=True, kw_only=True)
class Place:
    """A folder with a model, and a home of its own. environment: of processes there."""

    folder: Path
    model: Path
    environment: Mapping[str, str]

    @property
    def database(self) -> Path:
        return self.folder / "home/.local/share/ember/chats.db"

    @property
    def kept(self) -> Path:
        return Path(self.environment["EMBER_CACHE"]) / "kept"

    @property
    def kernels(self) -> Path:
        return Path(self.environment["EMBER_CACHE"]) / KERNELS

    @property
    def exported(self) -> Path:
        return self.folder / "exported.json"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A command. says: how many lines it is told, each once it asks for one.

    holds: raises AssertionError where something is lost or half; given the lines of all runs that
    were answered. after: a command that there must have been. ends: by itself.
    compiles: has none of the kernels, each time.
    """

    arguments: Callable[[Place], Sequence[str]]
    holds: Callable[[Place, Sequence[str]], None]
    says: int = 0
    after: str = ""
    ends: bool = True
    compiles: bool = False


@contextmanager
def place(folder: Path, *, has_kernels: bool = True) -> Iterator[Place]:
    """With a Hub on this machine that has the model too."""
    model = write_tiny(folder / "tiny.gguf")
    (folder / "chat.json").write_text(as_json(_chat()))
    home = own_home(folder / "home", has_kernels=has_kernels)
    with pytest.MonkeyPatch.context() as patch, running_hub(patch) as hub:
        hub.add(_REPOSITORY, _FILE, model.read_bytes())
        hub_home = {"HF_HOME": str(folder / "hub"), "HF_ENDPOINT": hub.url}
        yield Place(folder=folder, model=model, environment={**home, **hub_home})


def _chat() -> Chat:
    roles = (Role.USER, Role.ASSISTANT)
    said = [ChatMessage(role=roles[at % 2], text=f"word {at} " * 30) for at in range(_MESSAGES)]
    return Chat(title="imported", model="m", messages=said)


# -- what must hold --


def _chats_are_whole(at: Place, confirmed: Sequence[str]) -> None:
    """Whatever was answered is there, and an imported chat is there whole or not at all."""
    if not at.database.exists():
        assert not confirmed
        return
    require_sound(at.database)
    with closing(sqlite3.connect(at.database)) as connection:
        texts = {text for (text,) in connection.execute("SELECT text FROM messages")}
        sizes = connection.execute(
            "SELECT count(*) FROM messages JOIN chats ON chats.id = messages.chat "
            "WHERE title LIKE 'imported%' GROUP BY chats.id"
        ).fetchall()
    assert not set(confirmed) - texts, sorted(set(confirmed) - texts)
    assert all(size == _MESSAGES for (size,) in sizes), sizes


def _export_is_whole(at: Place, _confirmed: Sequence[str]) -> None:
    """Whole or not there; it goes, to be written by the next run."""
    if at.exported.exists():
        assert len(json.loads(at.exported.read_text())["messages"]) == _MESSAGES
        at.exported.unlink()


def _download_is_whole(at: Place, _confirmed: Sequence[str]) -> None:
    for path in (at.folder / "hub").rglob(_FILE):
        assert _digest(path) == _digest(at.model)


def _pieces_are_whole(at: Place, confirmed: Sequence[str]) -> None:
    _chats_are_whole(at, confirmed)
    if at.kept.exists():
        for name in PieceFolder(at.kept).pieces():
            data = PieceFolder(at.kept).read(name)
            assert data is not None, name
            about_in(data)
            assert data[-_SUM_BYTES:] == ended(zlib.crc32(data[:-_SUM_BYTES])), name


def _nothing_more(_at: Place, _confirmed: Sequence[str]) -> None:
    """That the next whole run succeeds says it all."""


def strays(at: Place) -> list[Path]:
    """Files and folders that were begun and not finished."""
    return [path for path in at.folder.rglob("*") if _BEGUN.search(path.name)]


def age(paths: Sequence[Path]) -> None:
    """As if they had been left long ago."""
    for path in paths:
        os.utime(path, (0, 0))


def _digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


STAGES: Mapping[str, Stage] = {
    "chat": Stage(
        arguments=lambda at: (
            "chat",
            str(at.model),
            "--plain",
            "--continue",
            "--stop",
            "\n",
            *_ANSWER,
        ),
        says=4,
        holds=_pieces_are_whole,
    ),
    "import": Stage(
        arguments=lambda at: ("chats", "import", str(at.folder / "chat.json")),
        holds=_chats_are_whole,
    ),
    "export": Stage(
        arguments=lambda at: ("chats", "export", "1", str(at.exported)),
        holds=_export_is_whole,
        after="import",
    ),
    "pull": Stage(
        arguments=lambda _: ("pull", f"hf:{_REPOSITORY}"),
        holds=_download_is_whole,
    ),
    "run": Stage(
        arguments=lambda at: ("run", str(at.model), "hello", "--keep", "system", *_ANSWER),
        holds=_nothing_more,
    ),
    "calibrate": Stage(
        arguments=lambda at: ("calibrate", str(at.model)),
        holds=_nothing_more,
    ),
    "serve": Stage(
        arguments=lambda at: ("serve", str(at.model), "--port", "0", "--ctx", "128"),
        ends=False,
        holds=_pieces_are_whole,
    ),
    "compile": Stage(
        arguments=lambda at: ("run", str(at.model), "hello", *_ANSWER),
        holds=_nothing_more,
        compiles=True,
    ),
}
