import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from models.errors import GGUFError
from models.gguf.file import GGUFFile
from models.gguf.identity import identity
from models.loader import load
from tests.gguf_factory import LlamaShape, q4_k_m, sentencepiece_tokenizer, write_llama

TINY = LlamaShape(layers=2, width=256, ffn=512, heads=4, kv_heads=2, vocab=307, context=64)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    tokenizer = sentencepiece_tokenizer(TINY.vocab)
    write_llama(path, config=TINY, types=q4_k_m(TINY), tokenizer_metadata=tokenizer, seed=1)
    return path


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Callable[[int], Path]:
    """A copy with the byte at a place changed."""

    def changed(at: int) -> Path:
        path = Path(shutil.copy(llama, tmp_path / f"{at}.gguf"))
        with path.open("r+b") as file:
            file.seek(at)
            (byte,) = file.read(1)
            file.seek(at)
            file.write(bytes([byte ^ 1]))
        return path

    return changed


def test_a_file_is_the_same_under_any_name(llama: Path, tmp_path: Path) -> None:
    found = identity(llama)
    assert len(found) == 32
    assert int(found, 16) >= 0
    assert found == identity(Path(shutil.copy(llama, tmp_path / "other.gguf")))


def test_ends_of_every_tensor_count(llama: Path, copy: Callable[[int], Path]) -> None:
    with GGUFFile(llama) as file:
        tensors = list(file.tensors.values())
    edges = [at for info in tensors for at in (info.offset, info.offset + info.nbytes - 1)]
    assert max(info.nbytes for info in tensors) > 8192
    found = {identity(llama), *(identity(copy(at)) for at in edges)}
    assert len(found) == len(edges) + 1


def test_metadata_and_size_count(llama: Path, copy: Callable[[int], Path]) -> None:
    name = llama.read_bytes().index(b"general.architecture") + len(b"general.architecture") + 12
    with GGUFFile(copy(name)) as file:
        assert file.metadata.get_string("general.architecture", "") != "llama"
    longer = Path(shutil.copy(llama, llama.with_name("longer.gguf")))
    os.truncate(longer, longer.stat().st_size + 32)
    assert len({identity(llama), identity(copy(name)), identity(longer)}) == 3


def test_a_byte_in_the_midst_of_a_tensor_is_not_seen(
    llama: Path, copy: Callable[[int], Path]
) -> None:
    with GGUFFile(llama) as file:
        largest = max(file.tensors.values(), key=lambda info: info.nbytes)
    assert identity(copy(largest.offset + largest.nbytes // 2)) == identity(llama)


def test_a_loaded_model_has_the_identity_of_its_file(llama: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(llama, tmp_path / "loaded.gguf"))
    loaded = load(path)
    path.unlink()  # What was loaded is meant, not what lies at its path since.
    assert loaded.identity == identity(llama)


def test_a_file_changed_since_has_none(llama: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(llama, tmp_path / "loaded.gguf"))
    loaded = load(path)
    os.utime(path, ns=(0, 0))
    with pytest.raises(GGUFError, match="was changed while in use"):
        _ = loaded.identity
