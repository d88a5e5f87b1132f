"""What a user is told about a file in which something had to be assumed."""

import io
import sys
from pathlib import Path

import pytest

from app import cli
from app.tui.live_service import LiveService
from app.tui.service import ModelInfo
from kvcache import CacheConfig
from models import load
from models.tensor_types import TensorType
from tests.app.conftest import TINY
from tests.gguf_factory import every_matrix, sentencepiece_tokenizer, write_llama

NAME = "metadata 'general.name': not UTF-8, the bytes that are not are replaced"
BOS = "tokenizer.ggml.bos_token_id is 4294967295: outside the vocabulary, 1 is taken"
SHOWN = f"ember: {NAME}\nember: {BOS}\n"


@pytest.fixture(scope="module")
def odd_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "odd.gguf"
    write_llama(
        path,
        config=TINY,
        types=every_matrix(TensorType.Q8_0),
        tokenizer_metadata=sentencepiece_tokenizer(TINY.vocab)
        | {"tokenizer.ggml.bos_token_id": 4294967295},
        seed=5,
    )
    path.write_bytes(path.read_bytes().replace(b"random weights", b"random\x9bweights"))
    return path


def test_a_loaded_model_has_its_notes(odd_path: Path) -> None:
    loaded = load(odd_path)
    assert loaded.notes == (NAME, BOS)
    assert loaded.name == "random\ufffdweights"


@pytest.mark.parametrize(
    "command",
    [
        ["run", "--raw", "--prompt", "ba ce", "--max-tokens", "2"],
        ["chat", "--plain", "--max-tokens", "2"],
        ["tokenize", "ba ce"],
    ],
    ids=lambda command: command[0],
)
def test_commands_show_notes_on_stderr(
    command: list[str],
    odd_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("ba ce\n/quit\n"))
    assert cli.run([*command, "-m", str(odd_path)]) == 0
    out, err = capsys.readouterr()
    assert SHOWN in err
    assert out.strip()


def test_the_chat_gets_notes(odd_path: Path) -> None:
    service = LiveService(CacheConfig())
    try:
        events = list(service.load(str(odd_path)))
    finally:
        service.close()
    (info,) = (event for event in events if isinstance(event, ModelInfo))
    assert info.notes[:2] == (NAME, BOS)
