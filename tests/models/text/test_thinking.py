"""Thinking is told from the answer by its marks, however what is said comes in pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.text.thinking import AnswerParts, ThinkingMarks, parted, thinking_marks
from models.text.tokenizer import Tokenizer
from models.text.vocabulary import TokenType
from tests import thinking_templates as templates
from tests.models.text.vocabularies import byte_level

CHANNEL = "<|channel|>analysis<|message|>"
FINAL = "<|end|><|start|>assistant<|channel|>final<|message|>"
CONTROLS = ("<|start|>", "<|end|>", "<|channel|>", "<|message|>", "<|return|>", "[THINK]")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_metadata(byte_level())


def marks(template: str) -> ThinkingMarks:
    found = thinking_marks(template, Tokenizer.from_metadata(byte_level()))
    assert found is not None
    return found


TAGS, BRACKETS = marks("</think>"), marks("[THINK]")
CHANNELS, GRANITE = marks(templates.CHANNELS), marks(templates.GRANITE)
SAID = [
    (TAGS, "<think>\nHm.\n\nSo.\n</think>\n\nParis.", "Hm.\n\nSo.", "Paris."),
    (TAGS, "\n <think></think>Paris.", "", "Paris."),
    (TAGS, "<think>\n\n</think>\n\n  Paris.\n", "", "Paris.\n"),
    (TAGS, "<think>a < b </thin k> c</think>d", "a < b </thin k> c", "d"),
    # Elsewhere marks are words.
    (TAGS, "  In HTML <think>x</think> is none.", "", "  In HTML <think>x</think> is none."),
    (TAGS, "<think>a</think>b <think>c</think>", "a", "b <think>c</think>"),
    (TAGS, "</think>b", "", "</think>b"),
    (TAGS, "<thinking>b", "", "<thinking>b"),
    (TAGS, " \n", "", " \n"),
    (TAGS, "<thi", "", "<thi"),
    # Cut before its end, thinking is what there is of it, and half a word is one.
    (TAGS, "<think>\nHm. \n", "Hm. \n", ""),
    (TAGS, "<think>Hm</thi", "Hm</thi", ""),
    (BRACKETS, "[THINK]Hm[/THINK]Paris", "Hm", "Paris"),
    (CHANNELS, f"{CHANNEL}Hm{FINAL}Paris", "Hm", "Paris"),
    (CHANNELS, f"<|channel|>final<|message|>Paris {CHANNEL}", "", f"Paris {CHANNEL}"),
    (CHANNELS, f"{CHANNEL}a<|end|><|start|>assistant{CHANNEL}b{FINAL}c", "a\n\nb", "c"),
    (CHANNELS, f"{CHANNEL}Hm<|end|><|start|>assis", "Hm", ""),
    (CHANNELS, " <|channel|>ana", "", " "),
    (GRANITE, "<think>Hm</think>\n<response>Paris</response>\n", "Hm", "Paris\n"),
    (GRANITE, "<think>Hm</think> Paris </response>", "Hm", "Paris </response>"),
    (GRANITE, "An <response>?", "", "An <response>?"),
]


@pytest.mark.parametrize(("family", "said", "thinking", "answer"), SAID)
@given(cuts=st.sets(st.integers(1, 120)))
def test_parts_are_the_same_however_they_come(
    family: ThinkingMarks, said: str, thinking: str, answer: str, cuts: set[int]
) -> None:
    parts, at = AnswerParts(family), 0
    found = ["", ""]
    for cut in [*sorted(cuts), len(said)]:
        for index, text in enumerate(parts.add(said[at:cut])):
            found[index] += text
        at = max(at, min(cut, len(said)))
    for index, text in enumerate(parts.finish()):
        found[index] += text
    assert found == [thinking, answer]
    assert parted(family, said) == (thinking, answer)


@pytest.mark.parametrize("family", [TAGS, BRACKETS, CHANNELS, GRANITE])
@given(thinking=st.text("ab <|", min_size=1), answer=st.text("ab\n/>", min_size=1))
def test_what_is_written_is_parted_again(family: ThinkingMarks, thinking: str, answer: str) -> None:
    thinking, answer = thinking.strip() or "a", answer.strip() or "b"
    for opened in (False, True):
        said = family.written(thinking, answer, opened=opened, closing=family.closing)
        begun = family.opening if opened else ""
        assert parted(family, begun + said) == (thinking, answer)
        said = family.written("", answer, opened=opened, closing=family.closing)
        assert parted(family, begun + said) == ("", answer)


def test_an_answer_goes_on_where_it_was_cut() -> None:
    parts = AnswerParts(TAGS, "<think>\nHm, ")
    assert parts.is_thinking
    # The space before it has been given.
    assert parts.add("so </think> P") == ("so", "P")
    assert parts.is_answer
    assert AnswerParts(TAGS, "<think>a</think>b").add(" <think>") == ("", " <think>")


def test_a_prompt_may_open_thinking() -> None:
    assert TAGS.opened_by("<|im_start|>assistant\n<think>\n") == "<think>\n"
    assert TAGS.opened_by("assistant\n<think>\n\n</think>\n\n") == ""
    assert CHANNELS.opened_by("<|start|>assistant") == ""


@pytest.mark.parametrize(
    ("template", "opens"),
    [
        (templates.QWEN, "<think>"),
        (templates.OPENED, "<think>"),
        (templates.PARTS, "[THINK]"),
        (templates.CHANNELS, CHANNEL),
        ("{{ '<thinking>' + message['thought'] + '</thinking>' }}", "<thinking>"),
        ("<|channel>thought", "<|channel>thought"),
        ("{{ messages[0].content }}", None),
    ],
)
def test_templates_tell_their_marks(tokenizer: Tokenizer, template: str, opens: str | None) -> None:
    found = thinking_marks(template, tokenizer)
    assert (found and found.opens[0]) == opens


def test_a_vocabulary_tells_marks_that_its_template_does_not() -> None:
    special = dict.fromkeys(("<think>", "</think>"), TokenType.USER_DEFINED)
    tokenizer = Tokenizer.from_metadata(byte_level(special=special))
    assert thinking_marks("{{ messages }}", tokenizer) == TAGS
    # The template goes before it.
    assert thinking_marks("[THINK]", tokenizer) == BRACKETS


def test_control_tokens_of_marks_are_known() -> None:
    special = dict.fromkeys(CONTROLS, TokenType.CONTROL)
    tokenizer = Tokenizer.from_metadata(byte_level(special=special))
    named = {tokenizer.text(id_) for id_ in CHANNELS.tokens(tokenizer)}
    assert named == {"<|start|>", "<|end|>", "<|channel|>", "<|message|>"}
    assert {tokenizer.text(id_) for id_ in BRACKETS.tokens(tokenizer)} == {"[THINK]"}
