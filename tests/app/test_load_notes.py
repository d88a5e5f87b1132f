"""What a user is told where something had to be assumed about a file, and can change."""

import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app import cli
from app.options import LoadOptions
from app.service.contract import Ask, ModelInfo
from app.service.live_service import LiveService
from kvcache import CacheConfig
from models import load
from models.gguf.tensor_types import TensorType
from models.text.messages import Message, Role
from tests.app.conftest import TINY, write_tiny
from tests.gguf_factory import every_matrix, write_llama
from tests.models.text.vocabularies import byte_level

NAME = "metadata 'general.name': not UTF-8, the bytes that are not are replaced"
BOS = "tokenizer.ggml.bos_token_id is 4294967295: outside the vocabulary, 1 is taken"
SHOWN = f"ember: {NAME}\nember: {BOS}\n"


@pytest.fixture(scope="module")
def odd_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_tiny(
        tmp_path_factory.mktemp("models") / "odd.gguf",
        changes={"tokenizer.ggml.bos_token_id": 4294967295, "general.tags": ["small one", "toy"]},
    )
    data = path.read_bytes().replace(b"random weights", b"random\x9bweights")
    path.write_bytes(data.replace(b"small one", b"small\xffone"))
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
    if command[0] == "tokenize":
        assert out.split()[1::2] == ["<s>", "ba", "ce"]


def test_inspect_shows_bytes_that_are_not_utf8(
    odd_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["inspect", str(odd_path), "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == f"ember: {NAME}\n"
    assert json.loads(out)["metadata"]["general.tags"] == [r"small\xffone", "toy"]
    assert cli.run(["inspect", str(odd_path)]) == 0
    assert r"small\xffone" in capsys.readouterr().out.replace("\\\\", "\\")


def test_the_chat_gets_notes(odd_path: Path) -> None:
    service = LiveService(CacheConfig())
    try:
        events = list(service.load(str(odd_path)))
    finally:
        service.close()
    (info,) = (event for event in events if isinstance(event, ModelInfo))
    assert info.notes[:2] == (NAME, BOS)


@pytest.fixture(scope="module")
def unknown_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose pre-tokenizer nobody knows."""
    path = tmp_path_factory.mktemp("models") / "unknown.gguf"
    metadata = byte_level(["1 2"], changes={"pre": "nosuch", "scores": None})
    write_llama(
        path,
        config=replace(TINY, vocab=257),
        types=every_matrix(TensorType.Q8_0),
        tokenizer_metadata={
            key: value.tolist() if isinstance(value, np.ndarray) else value
            for key, value in metadata.items()
        },
        seed=5,
    )
    return path


def test_an_unknown_pretokenizer_is_told_and_another_can_be_given(
    unknown_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenize = ["tokenize", "12", "--json", "-m", str(unknown_path)]
    for flags, ids in (([], [256]), (["--pretokenizer", "smollm"], [49, 50])):
        assert cli.run([*tokenize, *flags]) == 0
        out, err = capsys.readouterr()
        assert json.loads(out)["ids"] == ids
        assert ("tokenizer.ggml.pre is 'nosuch': ANSWERS MAY BE WORSE" in err) is not bool(flags)
    run = ["run", "--raw", "--prompt", "12", "--max-tokens", "1", "--json", "-m", str(unknown_path)]
    for flags, tokens in (([], 1), (["--pretokenizer", "smollm"], 2)):
        assert cli.run([*run, *flags]) == 0
        out, err = capsys.readouterr()
        assert json.loads(out)["prompt_tokens"] == tokens
        assert ("--pretokenizer NAME" in err) is not bool(flags)


@pytest.mark.parametrize("command", [["run"], ["chat"], ["tokenize", "x"], ["perplexity", "f"]])
def test_a_pretokenizer_that_nobody_knows_is_bad_usage(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([*command, "--pretokenizer", "lama-bpe"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "got pre-tokenizer 'lama-bpe', expected one such as llama-bpe, " in err


def test_the_chat_takes_a_pretokenizer(unknown_path: Path) -> None:
    service = LiveService(CacheConfig(), load=LoadOptions(pretokenizer="smollm"))
    try:
        events = list(service.load(str(unknown_path)))
        questions = [Message(role=Role.USER, content=text) for text in ("1", "12")]
        one, two = (next(iter(service.weigh(Ask(messages=(each,))))) for each in questions)
        assert two.tokens == one.tokens + 1
    finally:
        service.close()
    (info,) = (event for event in events if isinstance(event, ModelInfo))
    assert not any("pretokenizer" in note for note in info.notes)
