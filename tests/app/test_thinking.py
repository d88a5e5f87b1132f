"""Models that think, through the command line and a chat's prompts."""

import json
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

import pytest

from app import engine as engine_module
from app.chat_tokens import ChatTokens
from app.engine import Engine, Request
from app.events import Finished, TextChunk, ThinkingChunk
from kvcache import Backend, CacheConfig
from models.text.messages import Message, Role
from tests import thinking_models as thinkers
from tests.app.conftest import Ember
from tests.app.terminal import Terminal
from tests.thinking_models import ANSWER, THOUGHT


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: one.write(folder / f"{name}.gguf") for name, one in thinkers.ALL.items()}


@pytest.mark.parametrize("name", thinkers.ALL)
def test_thinking_is_beside_the_answer(ember: Ember, models: dict[str, Path], name: str) -> None:
    found = json.loads(ember("run", "-m", models[name], "-p", "x", "--json").out)
    assert (found["text"], found["thinking"]) == (ANSWER, THOUGHT)
    assert 0 < found["thinking_tokens"] < found["generated_tokens"]
    assert found["generated_tokens"] == len(found["tokens"])
    assert found["finish_reason"] == "stop"


@pytest.mark.parametrize("flags", [(), ("--think", "hide"), ("--think", "show")])
def test_stdout_has_the_answer_alone(
    ember: Ember, models: dict[str, Path], flags: Sequence[str]
) -> None:
    result = ember("run", "-m", models["qwen"], "-p", "x", *flags)
    assert result.out == f"{ANSWER}\n"
    assert result.err.startswith(f"{THOUGHT}\n") is ("show" in flags)
    assert ("Hm" in result.err) is ("show" in flags)
    assert "answer 9 tokens (6 thinking)" in result.err


@pytest.mark.parametrize("flags", [(), ("--think", "hide")])
def test_a_terminal_shows_thinking_dim(models: dict[str, Path], flags: Sequence[str]) -> None:
    terminal = Terminal("run", "-m", str(models["qwen"]), "-p", "x", *flags)
    assert terminal.close() == 0
    plain = terminal.shown.replace("\x1b[0m", "").replace("\x1b[2m", "").replace("\r\n", "\n")
    assert (f"{THOUGHT}\n{ANSWER}\n" in plain) is (not flags)
    assert ("\x1b[2mHm\x1b[0m" in terminal.shown) is (not flags)
    assert f"{ANSWER}\n" in plain


def test_a_batch_has_thinking_too(ember: Ember, models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "prompts").write_text("a\nb\n")
    flags = ["-m", models["qwen"], "--prompts-file", tmp_path / "prompts"]
    rows = json.loads(ember("run", *flags, "--json").out)["results"]
    assert [(row["text"], row["thinking"]) for row in rows] == [(ANSWER, THOUGHT)] * 2
    rows = json.loads(ember("run", *flags, "--json", "--think-budget", 2).out)["results"]
    assert [(row["text"], row["thinking"]) for row in rows] == [(ANSWER, "Hm")] * 2
    result = ember("run", *flags, "--think", "show")
    assert result.out == f"> a\n{ANSWER}\n\n> b\n{ANSWER}\n\n"
    assert result.err == f"{THOUGHT}\n{THOUGHT}\n"


@pytest.mark.parametrize("keep", [(), ("--keep", "system", "--system", "Be brief.")])
@pytest.mark.parametrize("name", ["qwen", "switched"])
def test_off_sets_the_templates_switch(
    ember: Ember, models: dict[str, Path], name: str, keep: Sequence[str]
) -> None:
    result = ember("run", "-m", models[name], "-p", "x", "--think", "off", "--json", *keep)
    found = json.loads(result.out)
    assert (found["text"].strip(), found["thinking_tokens"]) == (ANSWER, 0)
    assert "thinking" not in result.err


def test_off_without_a_switch_is_said(
    ember: Ember, models: dict[str, Path], tiny_path: Path
) -> None:
    result = ember("run", "-m", models["opened"], "-p", "x", "--think", "off")
    assert result.out == f"{ANSWER}\n"
    assert "has no switch for thinking: --think-budget 0 ends it as soon as it begins" in result.err
    result = ember("run", "-m", tiny_path, "-p", "x", "--max-tokens", 3, "--think", "off")
    assert "knows no thinking" in result.err


@pytest.mark.parametrize("pipelined", [False, True])
@pytest.mark.parametrize("budget", [0, 1, 2])
@pytest.mark.parametrize("name", ["qwen", "opened"])
def test_a_budget_is_followed_by_the_answer(
    ember: Ember,
    models: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    budget: int,
    pipelined: bool,
) -> None:
    monkeypatch.setattr(engine_module, "on_gpu", lambda: pipelined)
    flags = ["-m", models[name], "-p", "x", "--think-budget", budget, "--json"]
    found = json.loads(ember("run", *flags).out)
    assert found["text"] == ANSWER
    # The mark is a token of it too.
    thought = ["", "Hm", "Hm, so it"][budget if name == "opened" else max(budget - 1, 0)]
    assert found["thinking"] == thought


def test_a_raw_prompt_has_no_parts(ember: Ember, models: dict[str, Path]) -> None:
    result = ember("run", "-m", models["qwen"], "-p", "x", "--raw")
    assert result.out == "<think>\nHm, so it is \n</think> Paris.\n"
    line = ember("run", "-m", models["qwen"], "-p", "x", "--raw", "--think", "off").error_line()
    assert "--think has no place in a --raw prompt" in line


def test_a_plain_chat_shows_it_on_stderr(
    ember: Ember, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = iter(["x", "y"])

    def line(_prompt: str) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", line)
    result = ember("chat", "--plain", "-m", models["qwen"], "--think", "show")
    assert result.out.count(f"{ANSWER}\n") == 2
    assert "Hm" not in result.out
    assert result.err.count(f"{THOUGHT}\n") == 2


# -- events, and the prompts that follow --


def engine(name: str, folder: Path) -> Engine:
    path = thinkers.ALL[name].write(folder / "model.gguf")
    return Engine.load(path, CacheConfig(backend=Backend.REFERENCE))


def question(text: str) -> Message:
    return Message(role=Role.USER, content=text)


def test_events_tell_thinking_from_text(tmp_path: Path) -> None:
    model = engine("qwen", tmp_path)
    prompt = ChatTokens(model.loaded).prompt([question("x")])
    events = list(model.generate(Request(prompt=prompt.ids, thinking=prompt.thinking)))
    assert isinstance(events[-1], Finished)
    done = events[-1].completion
    thought = [each for each in events if isinstance(each, ThinkingChunk)]
    said = [each for each in events if isinstance(each, TextChunk)]
    assert "".join(each.text for each in thought) == THOUGHT == done.thinking
    assert "".join(each.text for each in said) == ANSWER == done.text
    # Every token is in one of them, in their order.
    counts = [each.tokens for each in thought] + [each.tokens for each in said]
    assert counts == [*range(1, len(done.tokens) + 1)]
    assert thought[-1].thinking_tokens == done.thinking_tokens == len(thought)
    assert [each.seconds for each in thought] == sorted(each.seconds for each in thought)


@pytest.mark.parametrize("name", thinkers.ALL)
def test_earlier_thinking_drops_out_and_what_agrees_is_reused(tmp_path: Path, name: str) -> None:
    model = engine(name, tmp_path)
    chat, said = ChatTokens(model.loaded), [question("one?")]
    read: list[int] = []
    before = 0
    for text in ("two?", "three?", "four?"):
        prompt = chat.prompt(said)
        shown = model.loaded.tokenizer.decode(prompt.ids, skip_special=False)
        assert shown.count(ANSWER) == len(said) // 2
        assert shown.count(THOUGHT) == (len(said) // 2 if name == "parts" else 0)
        pairs = zip(prompt.ids, read, strict=False)
        agree = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        # All up to the last answer, where the template leaves its thinking out.
        assert agree >= (len(read) if name == "parts" else before - 3)
        *_, last = model.generate(Request(prompt=prompt.ids, thinking=prompt.thinking))
        assert isinstance(last, Finished)
        done = last.completion
        assert done.reused_tokens == agree
        chat.answered(done)
        # The end was said and not read.
        read, before = [*prompt.ids, *done.tokens[:-1]], len(prompt.ids)
        answer = Message(role=Role.ASSISTANT, content=done.text, thinking=done.thinking)
        said += [answer, question(text)]


def test_an_answer_cut_in_its_thinking_goes_on(tmp_path: Path) -> None:
    model = engine("qwen", tmp_path)
    chat, said = ChatTokens(model.loaded), [question("x")]
    prompt = chat.prompt(said)
    half = Message(role=Role.ASSISTANT, content="", thinking="Hm, so it")
    going = chat.prompt([*said, half], continues=True)
    assert going.ids[: len(prompt.ids)] == prompt.ids
    assert going.thinking is not None
    assert going.thinking.begun == "<think>\nHm, so it"
    whole = Message(role=Role.ASSISTANT, content="Par", thinking="Hm")
    begun = chat.prompt([*said, whole], continues=True).thinking
    assert begun is not None
    assert begun.begun == "<think>\nHm\n</think>\n\nPar"


def test_an_answer_goes_on_with_the_ids_that_were_read(tmp_path: Path) -> None:
    model = engine("qwen", tmp_path)
    chat, said = ChatTokens(model.loaded), [question("x")]
    prompt = chat.prompt(said)
    request = Request(prompt=prompt.ids, thinking=prompt.thinking, max_tokens=1)
    *_, last = model.generate(request)
    assert isinstance(last, Finished)
    assert last.completion.text == "Paris"
    chat.answered(last.completion)
    half = Message(role=Role.ASSISTANT, content="Paris", thinking=last.completion.thinking)
    going = chat.prompt([*said, half], continues=True)
    assert going.ids == [*prompt.ids, *last.completion.tokens]
    request = Request(prompt=going.ids, thinking=going.thinking, continues=True)
    *_, last = model.generate(request)
    assert isinstance(last, Finished)
    assert (last.completion.text, last.completion.thinking) == (".", "")
