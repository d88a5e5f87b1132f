"""What `run` is asked: words after the model, --prompt, what is piped in, and all together."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path

import pytest

from app import cli, prompt_words
from app.commands import run
from app.options import UsageError
from kvcache import EmberError
from models.errors import ModelNotFoundError
from tests.app.conftest import Ember
from tests.app.terminal import END, Terminal

Give = Callable[[bytes | Path], None]


@contextmanager
def _stdin() -> Iterator[Give]:
    """Gives stdin a content, or a file; all is as it was afterwards."""
    before, kept = sys.stdin, os.dup(0)

    def give(content: bytes | Path) -> None:
        if isinstance(content, Path):
            source = os.open(content, os.O_RDONLY)
        else:
            source, writing = os.pipe()
            os.write(writing, content)
            os.close(writing)
        os.dup2(source, 0)
        os.close(source)
        raw = open(0, "rb", closefd=False)  # noqa: SIM115
        sys.stdin = TextIOWrapper(raw, "utf-8", "surrogateescape", newline="\n")

    try:
        yield give
    finally:
        sys.stdin = before
        os.dup2(kept, 0)
        os.close(kept)


@pytest.fixture
def give() -> Iterator[Give]:
    with _stdin() as give:
        give(Path(os.devnull))
        yield give


def asked(*arguments: str) -> tuple[str | None, list[str]]:
    """The model and the prompts of a command."""
    args = cli._parsed(["run", *arguments])
    run._part(args)
    return args.model or args.name, run._prompts(args)


@pytest.mark.parametrize(
    ("arguments", "model", "prompt"),
    [
        (["m", "why?"], "m", "why?"),
        (["m", "why", "is", "it?"], "m", "why is it?"),
        (["m", "--temp", "0", "why?"], "m", "why?"),
        (["m", "why", "--temp", "0", "is", "it?"], "m", "why is it?"),
        (["--temp", "0", "m", "why?"], "m", "why?"),
        (["m", "-p", "why?"], "m", "why?"),
        (["m", "-1 + 2?"], "m", "-1 + 2?"),
        (["m", "--", "-1+2?"], "m", "-1+2?"),
        (["-m", "m", "why?"], "m", "why?"),
        (["-m", "m", "m", "why?"], "m", "why?"),
        (["why?", "-m", "m"], "m", "why?"),
        (["-m", "m", "why", "is", "it?"], "m", "why is it?"),
        (["why is it 1/2?"], None, "why is it 1/2?"),
        (["why is it? " * 999], None, "why is it? " * 999),
        (["smollm2", "-p", "why?"], "smollm2", "why?"),
    ],
)
@pytest.mark.usefixtures("give", "home")
def test_words_after_the_model_are_the_prompt(
    arguments: list[str], model: str | None, prompt: str
) -> None:
    assert asked(*arguments) == (model, [prompt])


@pytest.mark.usefixtures("home")
def test_a_chat_takes_a_model_and_a_prompt_likewise() -> None:
    for arguments, model, prompt in (
        (["m", "why?"], "m", "why?"),
        (["why is it so?"], None, "why is it so?"),
        (["m", "--temp", "0", "why", "so?"], "m", "why so?"),
        (["smollm2"], "smollm2", ""),
    ):
        args = cli._parsed(["chat", *arguments])
        prompt_words.part(args)
        assert (args.name, " ".join(args.words)) == (model, prompt)


@pytest.mark.parametrize(
    ("arguments", "prompt"),
    [
        (["m", "Sum up:"], "Sum up:\n\none\ntwo"),
        (["m", "-p", "Sum up:"], "Sum up:\n\none\ntwo"),
        (["m", "-", "What is it?"], "one\ntwo\n\nWhat is it?"),
        (["m", "Sum", "up:", "-", "Be", "brief."], "Sum up:\n\none\ntwo\n\nBe brief."),
        (["Sum it up:"], "Sum it up:\n\none\ntwo"),
        (["smollm2"], "one\ntwo"),
        (["m", "-"], "one\ntwo"),
        (["-"], "one\ntwo"),
        (["m", "--temp", "0", "-"], "one\ntwo"),
        (["m", "-p", "-"], "one\ntwo"),
        (["m", "-p", ""], "one\ntwo"),
    ],
)
@pytest.mark.usefixtures("home")
def test_a_prompt_takes_along_what_is_piped_in(
    arguments: list[str], prompt: str, give: Give, tmp_path: Path
) -> None:
    give(b"one\r\ntwo\n")
    assert asked(*arguments)[1] == [prompt]
    file = tmp_path / "notes.txt"
    file.write_text("one\ntwo\n")
    give(file)
    assert asked(*arguments)[1] == [prompt]


@pytest.mark.parametrize("content", [b"", b"\n", b" \n\n", Path(os.devnull)])
def test_nothing_piped_in_leaves_the_prompt_alone(content: bytes | Path, give: Give) -> None:
    give(content)
    assert asked("m", "why?")[1] == ["why?"]
    give(content)
    assert asked("m", "-", "why?")[1] == ["why?"]
    give(content)
    assert asked("smollm2")[1] == []


def test_a_closed_stdin_leaves_the_prompt_alone(give: Give) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)  # as `streams` and nohup leave it
    os.dup2(nowhere, 0)
    os.close(nowhere)
    assert asked("m", "why?")[1] == ["why?"]
    with pytest.raises(EmberError, match="cannot read stdin: Bad file descriptor"):
        asked("m", "-")


@pytest.mark.parametrize("content", [b"GGUF\x03\xff\xfe", b"a\0b"])
def test_what_is_piped_in_and_no_text_is_refused(content: bytes, give: Give) -> None:
    give(content)
    with pytest.raises(EmberError, match="stdin is no text"):
        asked("m", "why?")


@pytest.mark.usefixtures("give", "home")
def test_two_prompts_are_refused() -> None:
    for flags in (["--prompt", "x"], ["--prompts-file", __file__]):
        with pytest.raises(UsageError, match=r"^got two prompts, 'why is it\?' and --prompt"):
            asked("m", "why", "is it?", *flags)


@pytest.mark.usefixtures("give", "home")
def test_a_word_that_is_no_model_is_told_where_prompts_stand() -> None:
    with pytest.raises(ModelNotFoundError, match=r"no model named 'hello'.*; a prompt "):
        asked("hello")
    assert asked("./my models/a b.gguf") == ("./my models/a b.gguf", [])


def test_a_file_with_blanks_in_its_name_is_a_model(
    give: Give, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my model").touch()
    assert asked(str(tmp_path / "my model")) == (str(tmp_path / "my model"), [])


def test_words_are_left_over_for_no_other_command(ember: Ember) -> None:
    for command in (
        ["ls", "x"],
        ["chat", "m", "--nix"],
        ["ls", "--json", "x"],
        ["run", "m", "--temp", "0", "--nix"],
    ):
        result = ember(*command)
        assert result.code == 2
        assert "unrecognized arguments: " in result.error_line()


def test_who_types_the_prompt_is_told_how_it_ends(tiny_path: Path, folders: dict[str, str]) -> None:
    flags = ("--max-tokens", "3", "--backend", "reference")
    terminal = Terminal("run", "-m", str(tiny_path), *flags, environment=folders)
    terminal.wait_for("type the prompt; Ctrl-D")
    terminal.type(b"ba ce\n" + END)
    terminal.wait_for("answer 3 tokens")
    assert terminal.close() == 0
