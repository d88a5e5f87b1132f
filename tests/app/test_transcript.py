"""An answer's parts, ends and figures, fed id by id."""

from collections.abc import Sequence

import pytest

from app.events import FinishReason
from app.transcript import Transcript
from models.text.thinking import Thinking, ThinkingMarks, thinking_marks
from models.text.tokenizer import Tokenizer
from models.text.vocabulary import TokenType
from tests import thinking_templates as templates
from tests.models.text.vocabularies import byte_level

CHANNEL = ("<|start|>", "<|end|>", "<|channel|>", "<|message|>", "<|return|>", "<|call|>")
SPECIAL = dict.fromkeys(("</s>", *CHANNEL), TokenType.CONTROL) | dict.fromkeys(
    ("<think>", "</think>"), TokenType.USER_DEFINED
)
TOKENIZER = Tokenizer.from_metadata(byte_level(special=SPECIAL, changes={"eos_token_id": 256}))


def marks(template: str) -> ThinkingMarks:
    found = thinking_marks(template, TOKENIZER)
    assert found is not None
    return found


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special=False)


def transcript(
    *,
    begun: str = "",
    budget: int = 100,
    most: int = 100,
    stop: Sequence[str] = (),
    template: str = templates.QWEN,
) -> Transcript:
    found = marks(template)
    thinking = Thinking(marks=found, begun=begun, closing=tuple(ids(found.closing)))
    return Transcript(
        TOKENIZER,
        prompt_tokens=7,
        max_tokens=most,
        stop=stop,
        thinking=thinking,
        think_budget=budget,
    )


def feed(into: Transcript, text: str) -> str:
    """Say a text, or what the transcript forces in its place; returns the answer's part."""
    said = ""
    for id_ in ids(text):
        while into.forced and into.finish_reason is None:
            said += into.add(into.forced.popleft())
        if into.finish_reason is None:
            said += into.add(id_)
    return said


def test_thinking_and_answer_are_parts_of_their_own() -> None:
    made = transcript()
    assert feed(made, "<think>\nHm, so.\n</think>\n\nParis.</s>") == "Paris."
    done = made.completion()
    assert (done.text, done.thinking, done.finish_reason) == (
        "Paris.",
        "Hm, so.",
        FinishReason.STOP,
    )
    assert done.said == "<think>\nHm, so.\n</think>\n\nParis."
    assert done.thinking_tokens == len(ids("<think>\nHm, so.\n</think>"))
    assert len(done.tokens) == len(ids(done.said)) + 1
    assert done.thinking_s > 0


def test_stop_strings_and_the_longest_answer_are_for_the_answer() -> None:
    made = transcript(stop=["so"], most=5)
    assert feed(made, "<think>so, so</think>\n\nParis is so") == "Par"
    assert (made.finish_reason, made.completion().thinking) == (FinishReason.LENGTH, "so, so")
    made = transcript(stop=["so"])
    assert feed(made, "<think>so, so</think>It is so.") == "It is "
    assert made.finish_reason is FinishReason.STOP


def test_a_budget_ends_thinking_as_the_model_would() -> None:
    made = transcript(budget=4)
    assert feed(made, "<think>abcdefg") == "defg"
    done_early = transcript(budget=4)
    feed(done_early, "<think>ab</think>cdefghijk")
    assert not done_early.forced
    assert made.tokens == ids("<think>abc\n</think>\n\ndefg")
    made.end(FinishReason.CANCELLED)
    assert (made.completion().thinking, made.completion().text) == ("abc", "defg")


@pytest.mark.parametrize("begun", ["<think>\n", ""])
def test_a_budget_of_nothing_ends_it_as_it_begins(begun: str) -> None:
    made = transcript(budget=0, begun=begun)
    assert feed(made, f"{'' if begun else '<think>'}Paris") == "Paris"
    made.end(FinishReason.CANCELLED)
    assert (made.completion().thinking, made.completion().text) == ("", "Paris")


def test_a_budget_ends_thinking_also_where_no_word_of_it_is_known() -> None:
    thinking = Thinking(marks=marks(templates.QWEN), begun="", closing=tuple(ids("?!")))
    made = Transcript(TOKENIZER, prompt_tokens=7, max_tokens=3, thinking=thinking, think_budget=2)
    assert feed(made, "<think>abcdefg") == "bcd"
    assert (made.finish_reason, made.thinking_tokens) == (FinishReason.LENGTH, 4)


def test_names_of_control_tokens_are_read_before_the_answer_alone() -> None:
    made = transcript(template=templates.CHANNELS)
    said = "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant<|channel|>final<|message|>"
    assert feed(made, f"{said}Par<|end|>is<|start|>.") == "Paris."
    made.end(FinishReason.CANCELLED)
    done = made.completion()
    assert (done.thinking, done.text) == ("Hm", "Paris.")
    assert done.said == f"{said}Paris."


def test_thinking_that_is_cut_is_kept() -> None:
    made = transcript()
    feed(made, "<think>\nHm, é")
    made.add(ids("é")[0])
    assert made.end(FinishReason.CANCELLED) == ""
    assert made.thought == "\ufffd"
    assert made.completion().thinking == "Hm, é\ufffd"


def test_without_marks_all_is_the_answer() -> None:
    made = Transcript(TOKENIZER, prompt_tokens=7, max_tokens=100)
    assert feed(made, "<think>a</think>b<|end|>") == "<think>a</think>b"
    made.end(FinishReason.CANCELLED)
    assert (made.completion().thinking, made.completion().thinking_tokens) == ("", 0)
