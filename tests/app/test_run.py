"""`run` where prompts fail, or are interrupted: what was answered is not lost."""

import io
import json
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from app.transcript import Transcript
from kvcache import EmberError
from tests.app.conftest import Ember
from tests.scripted_model import write_scripted

Break = Callable[[int, Callable[[Transcript], None]], None]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Counts for ever, in a window of 128 tokens."""
    path = tmp_path_factory.mktemp("models") / "counts.gguf"
    numbers = [b"one ", b"two ", b"three "]
    write_scripted(path, numbers, endless=True, context=128)
    return path


@pytest.fixture
def break_at(monkeypatch: pytest.MonkeyPatch) -> Break:
    """Has a step done once so many tokens have been sampled, over all rows."""

    def install(count: int, step: Callable[[Transcript], None]) -> None:
        sampled = 0
        add = Transcript.add

        def counted(transcript: Transcript, token: int) -> str:
            nonlocal sampled
            sampled += 1
            if sampled == count:
                step(transcript)
            return add(transcript, token)

        monkeypatch.setattr(Transcript, "add", counted)

    return install


def interrupt(_transcript: Transcript) -> None:
    ident = threading.main_thread().ident
    assert ident is not None
    signal.pthread_kill(ident, signal.SIGINT)


def fail(_transcript: Transcript) -> None:
    raise EmberError("the weights hold no numbers")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"\xef\xbb\xbfa\r\nb\x0bc\xe2\x80\xa8d\r\n" + b"long " * 200 + b"\ne")
    return path


def test_lines_of_a_prompts_file_are_its_prompts(ember: Ember, model: Path, prompts: Path) -> None:
    flags = ["-m", model, "--raw", "--max-tokens", "3", "--prompts-file", prompts]
    result = ember("run", *flags)
    said = "one two three "
    assert result.out == f"> a\n{said}\n\n> b\x0bc\u2028d\n{said}\n\n> e\n{said}\n\n"


def test_a_prompt_that_fails_leaves_the_others_their_answers(
    ember: Ember, model: Path, prompts: Path
) -> None:
    flags = ["-m", model, "--raw", "--max-tokens", "3", "--prompts-file", prompts]
    result = ember("run", *flags, "--json")
    rows = json.loads(result.out)["results"]
    assert [row["finish_reason"] for row in rows] == ["length", "length", "failed", "length"]
    assert [row["text"] for row in rows] == ["one two three "] * 2 + ["", "one two three "]
    assert "but the window holds" in rows[2]["error"]
    assert set(rows[2]) == {*rows[0], "error"}
    assert result.code == 1
    assert result.err.splitlines()[-1].startswith("ember: error: prompt 3: the prompt has 10")


@pytest.mark.parametrize("batch", [False, True], ids=["one", "batch"])
def test_an_answer_that_repeats_itself_is_stopped_and_told(
    batch: bool, ember: Ember, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "prompts").write_text("a\nb\n")
    prompt = ["--prompts-file", tmp_path / "prompts"] if batch else ["-p", "a"]
    flags = ["-m", model, "--raw", "--max-tokens", "600", "--json", *prompt]
    result = ember("run", *flags)
    found = json.loads(result.out)
    for row in found["results"] if batch else [found]:
        assert row["finish_reason"] == "loop"
        assert 300 < row["generated_tokens"] < 400
    told = result.err.count("the answer repeats itself: stopped. --temp 0.8 --repeat-penalty 1.2")
    assert (result.code, told) == (0, 2 if batch else 1)
    assert ("prompt 2: the answer" in result.err) == batch
    allowed = ember("run", *flags, "--allow-loops")
    found = json.loads(allowed.out)
    for row in found["results"] if batch else [found]:
        assert (row["finish_reason"], row["generated_tokens"]) == ("length", 600)
    assert "repeats itself" not in allowed.err


def test_a_chat_line_by_line_tells_of_a_loop(
    ember: Ember, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("go on\n"))
    result = ember("chat", "--plain", "-m", model, "--max-tokens", "600", "--temp", "0")
    assert "the answer repeats itself: stopped" in result.err


def test_an_empty_prompts_file_is_one_line(ember: Ember, tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.write_bytes(b"\xef\xbb\xbf\n \n")
    result = ember("run", "--prompts-file", path)
    assert result.code == 2
    assert "is empty: write a prompt a line" in result.error_line()


@pytest.mark.parametrize("batch", [False, True], ids=["one", "batch"])
def test_an_interrupted_run_prints_its_object(
    batch: bool, ember: Ember, model: Path, tmp_path: Path, break_at: Break
) -> None:
    (tmp_path / "prompts").write_text("a\nb\n")
    prompt = ["--prompts-file", tmp_path / "prompts"] if batch else ["-p", "a"]
    break_at(9, interrupt)
    result = ember("run", "-m", model, "--max-tokens", "1000000", "--raw", "--json", *prompt)
    found = json.loads(result.out)
    for row in found["results"] if batch else [found]:
        assert row["finish_reason"] == "cancelled"
        assert row["text"].startswith("one two three one ")
        assert "error" not in row
    assert result.code == 130
    assert ("ember: interrupted" in result.err) == batch


@pytest.mark.parametrize("batch", [False, True], ids=["one", "batch"])
def test_what_was_answered_before_an_error_is_printed(
    batch: bool, ember: Ember, model: Path, tmp_path: Path, break_at: Break
) -> None:
    (tmp_path / "prompts").write_text("a\nb\n")
    prompt = ["--prompts-file", tmp_path / "prompts"] if batch else ["-p", "a"]
    break_at(10 if batch else 5, fail)
    result = ember("run", "-m", model, "--raw", "--json", *prompt)
    found = json.loads(result.out)
    for row in found["results"] if batch else [found]:
        assert (row["finish_reason"], row["error"]) == ("failed", "the weights hold no numbers")
        assert row["text"].startswith("one two three one ")
    assert result.code == 1
    assert "ember: error: " in result.err


def test_an_error_amid_an_answer_ends_the_line(ember: Ember, model: Path, break_at: Break) -> None:
    break_at(4, fail)
    result = ember("run", "-m", model, "--raw", "-p", "a")
    assert (result.code, result.out) == (1, "one two three \n")
    assert result.err.splitlines()[-1] == "ember: error: the weights hold no numbers"


def test_an_error_before_an_answer_prints_nothing(
    ember: Ember, model: Path, break_at: Break
) -> None:
    break_at(1, fail)
    result = ember("run", "-m", model, "--raw", "-p", "a", "--json")
    assert (result.code, result.out) == (1, "")
