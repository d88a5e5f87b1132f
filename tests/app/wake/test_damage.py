"""Whatever lies in the folder, an engine answers as one that found nothing, or as the one that
rested; and what is of no use goes.
"""

import os
import random
import signal
import stat
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from app.wake.folder import PieceFolder
from app.wake.piece import MOST_HEADER
from app.wake.pieces import Pieces
from kvcache import Backend
from kvcache.prompt_cache import rewind
from models.loader import LoadedModel, load
from tests.app.conftest import write_tiny
from tests.app.wake.resting import WORDS, answer, engine_of, rest, wake
from tests.full_disk import full_disk

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    path = write_tiny(tmp_path_factory.mktemp("models") / "tiny.gguf")
    return load(path, backend=Backend.CPU)


@pytest.fixture(scope="module")
def prompt(loaded: LoadedModel) -> list[int]:
    """What was kept by `kept`, and a question behind it."""
    return [*WORDS[:90], 600, 9]


@pytest.fixture
def kept(loaded: LoadedModel, prompt: list[int], tmp_path: Path) -> Path:
    engine = engine_of(loaded, Backend.CPU)
    answer(engine, prompt[:90], 1)
    rest(engine, tmp_path / "kept")
    return tmp_path / "kept"


def _kinds(folder: Path, kind: str) -> list[Path]:
    return sorted(folder.glob(f"*.{kind}.safetensors"))


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def _emptied(path: Path) -> None:
    os.truncate(path, 0)


def _longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + bytes(8))


def _flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(3):
        data[random.Random(str(path)).randrange(len(data))] ^= 1 << 4
    path.write_bytes(data)


def _last_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _swapped(path: Path) -> None:
    """Another whole piece under this name."""
    other = next(each for each in sorted(path.parent.iterdir()) if each != path)
    path.write_bytes(other.read_bytes())


def _endless_header(path: Path) -> None:
    path.write_bytes((2**63 - 1).to_bytes(8, "little") + path.read_bytes()[8:])


def _deep_header(path: Path) -> None:
    text = b'{"__metadata__":' + b"[" * (MOST_HEADER // 2)
    path.write_bytes(len(text).to_bytes(8, "little") + text)


def _sparse(path: Path) -> None:
    """A file of a terabyte that takes no room."""
    os.truncate(path, 1 << 40)


def _made_up(path: Path) -> None:
    """Numbers in the header that nothing leads to."""
    data = path.read_bytes()
    path.write_bytes(data.replace(b"[[9", b"[[8").replace(b'"shape":[3,', b'"shape":[4,'))


def _a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _a_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def _a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _not_readable(path: Path) -> None:
    path.write_bytes(b"\x10\0\0\0\0\0\0\0" + bytes(16))


DAMAGES = (
    *(_cut, _emptied, _longer, _flipped, _last_bit, _swapped, _endless_header, _deep_header),
    *(_sparse, _made_up, _a_folder, _a_loop, _a_pipe, _not_readable),
)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__.strip("_"))
@pytest.mark.parametrize(("kind", "which"), [("pins", 0), ("rest", 0), ("block", 4)])
def test_a_damaged_piece_is_as_none(
    loaded: LoadedModel,
    prompt: list[int],
    kept: Path,
    kind: str,
    which: int,
    damage: Callable[[Path], None],
) -> None:
    live = engine_of(loaded, Backend.CPU)
    answer(live, prompt[:90], 1)
    path = _kinds(kept, kind)[which]
    before = path.read_bytes()
    damage(path)
    engine = engine_of(loaded, Backend.CPU)
    found = wake(engine, kept, prompt)
    assert found < 90 or path.read_bytes() == before
    # As a live cache that has gone back to there, or has to begin.
    rewind(live.caches, live.plan, tokens=found, total=len(prompt))
    got, expected = answer(engine, prompt), answer(live, prompt)
    assert (got.tokens, got.reused_tokens) == (expected.tokens, found)
    rest(engine, kept)
    assert wake(engine_of(loaded, Backend.CPU), kept, [*prompt, *got.tokens, 5]) >= found


def test_numbers_that_are_none_are_not_held(
    loaded: LoadedModel, prompt: list[int], kept: Path
) -> None:
    """A forger's rest, whose sum is right: not finite, so it is refused and goes."""
    engine = engine_of(loaded, Backend.CPU)
    (path,) = _kinds(kept, "rest")
    name, data = path.name.removesuffix(".safetensors"), bytearray(path.read_bytes())
    pieces = Pieces(engine.caches, engine.plan, loaded.identity, engine.metric)
    layout, _ = pieces.rest_in(name, bytes(data))
    data[len(layout.header) + layout.parts[0].nbytes : -4] = b"\xff" * (
        len(data) - 4 - len(layout.header) - layout.parts[0].nbytes
    )
    data[-4:] = zlib.crc32(bytes(data[:-4])).to_bytes(4, "little")
    path.write_bytes(data)
    found = wake(engine, kept, prompt)
    assert found < 90
    assert not path.exists()
    assert answer(engine, prompt).reused_tokens == found


def test_the_folder_is_private_whatever_it_was(
    loaded: LoadedModel, prompt: list[int], tmp_path: Path
) -> None:
    folder = tmp_path / "kept"
    folder.mkdir(mode=0o777)
    engine = engine_of(loaded, Backend.CPU)
    answer(engine, prompt, 1)
    rest(engine, folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_a_full_disk_is_told_once_and_leaves_nothing(
    loaded: LoadedModel, prompt: list[int], tmp_path: Path
) -> None:
    engine = engine_of(loaded, Backend.CPU)
    answer(engine, prompt, 1)
    folder = tmp_path / "kept"
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with full_disk(200):
            (line,) = rest(engine, folder)
    finally:
        signal.signal(signal.SIGXFSZ, before)
    assert line.startswith("chats are not kept ready on disk: ")
    assert str(folder) in line
    assert list(folder.iterdir()) == []
    # With room again all is kept.
    assert rest(engine, folder) == []
    assert wake(engine_of(loaded, Backend.CPU), folder, [*prompt, 5]) == len(engine.held())


def test_a_folder_that_cannot_be_is_a_line(
    loaded: LoadedModel, prompt: list[int], tmp_path: Path
) -> None:
    engine = engine_of(loaded, Backend.CPU)
    answer(engine, prompt, 1)
    (tmp_path / "kept").write_text("a file")
    (line,) = rest(engine, tmp_path / "kept")
    assert line.startswith("chats are not kept ready on disk: ")
    assert "\n" not in line
    assert wake(engine_of(loaded, Backend.CPU), tmp_path / "kept", prompt) == 0


_RESTING = """
import sys
from pathlib import Path
from models.loader import load
from kvcache import Backend
from kvcache.prompt_cache import rewind
from tests.app.wake.resting import WORDS, answer, engine_of, rest
loaded = load(sys.argv[1], backend=Backend.CPU)
print("begun", flush=True)
while True:
    for start in range(60):
        engine = engine_of(loaded, Backend.CPU)
        answer(engine, WORDS[start : start + 90], 1)
        rest(engine, Path(sys.argv[2]))
        print("rested", flush=True)
"""


@pytest.mark.parametrize("seed", range(4))
def test_a_kill_at_any_moment_leaves_nothing_that_is_stumbled_over(
    loaded: LoadedModel, seed: int, tmp_path: Path
) -> None:
    folder = tmp_path / "kept"
    command = [sys.executable, "-c", _RESTING, str(loaded.path), str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        assert process.stdout.readline() == "rested\n"
        time.sleep(random.Random(seed).uniform(0.01, 0.2))
        process.kill()
    found = PieceFolder(folder).pieces()
    assert found
    answered = 0
    for start in range(60):
        engine, prompt = engine_of(loaded, Backend.CPU), [*WORDS[start : start + 90], 600]
        reached = wake(engine, folder, prompt)
        if reached:
            assert answer(engine, prompt, 1).reused_tokens == reached
            answered += 1
    assert answered
    # All that is there was whole: nothing of it was found damaged and removed.
    assert PieceFolder(folder).pieces().keys() == found.keys()
    for staged in folder.glob(".piece-*"):
        os.utime(staged, (0, 0))
    PieceFolder(folder).bound()
    assert not list(folder.glob(".piece-*"))
