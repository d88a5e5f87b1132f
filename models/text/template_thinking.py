"""What a chat template does with thinking, found by rendering made-up conversations.

Knows how a rendering is asked for by a function it is given; nothing of processes or files.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from models.text.thinking import ThinkingMarks

Turn = dict[str, object]
# The text of a conversation, with more variables and with the head of an answer or without;
# None where the template fails.
Render = Callable[[Sequence[Turn], Mapping[str, object], bool], str | None]

_QUESTION, _ANSWER, _SECOND = "Qfirstq", "Qanswerq", "Qsecondq"
_THOUGHT = "Qthoughtq"
_ON, _OFF = "/think", "/no_think"


class Switch(Enum):
    """How a template is told whether to let a model think."""

    NONE = "not at all"
    VARIABLE = "by enable_thinking, or thinking"
    WORD = "by /think or /no_think in the system prompt"


class Form(Enum):
    """How a template takes the thinking of an earlier answer."""

    LEFT_OUT = "not at all"
    KEYS = "as reasoning_content, or thinking, beside the content"
    PARTS = "as a part of the content"


@dataclass(frozen=True, kw_only=True)
class TemplateThinking:
    """marks: None for a model that does not think. closing: what ends thinking, written whole.

    Of earlier thinking, a template that takes it decides what is shown again; of others it
    is left out.
    """

    marks: ThinkingMarks | None = None
    switch: Switch = Switch.NONE
    form: Form = Form.LEFT_OUT
    closing: str = ""

    def variables(self, think: bool | None) -> dict[str, object]:
        """What the template is told of thinking; None leaves it to the template."""
        return _told(think) if think is not None and self.switch is Switch.VARIABLE else {}

    def word(self, think: bool | None) -> str:
        """What the system prompt ends with."""
        if think is None or self.switch is not Switch.WORD:
            return ""
        return _ON if think else _OFF

    def said(self, content: object, text: str, thinking: str) -> Turn:
        """The keys of a message that has thinking. content: its text, as the template has it."""
        if thinking and self.form is Form.KEYS:
            return _with_keys(content, thinking)
        if thinking and self.form is Form.PARTS:
            return {"content": _parts(thinking, text)}
        return {"content": content}


def template_thinking(
    template: str, marks: ThinkingMarks | None, plain: Callable[[str], object], render: Render
) -> TemplateThinking:
    """What a template does. plain: a text as the content of a message of this template."""
    if marks is None:
        return TemplateThinking()
    question = _turn("user", {"content": plain(_QUESTION)})
    second = _turn("user", {"content": plain(_SECOND)})
    keyed = _turn("assistant", _with_keys(plain(_ANSWER), _THOUGHT))
    parted = _turn("assistant", {"content": _parts(_THOUGHT, _ANSWER)})
    off = render([question], _told(False), True)
    switch = Switch.NONE
    if off is not None and off != render([question], _told(True), True):
        switch = Switch.VARIABLE
    elif _OFF in template:
        shown, other = (
            render([_turn("system", {"content": plain(f"Q {word}")}), question], {}, True)
            for word in (_ON, _OFF)
        )
        if shown and other and shown.replace(_ON, "") != other.replace(_OFF, ""):
            switch, off = Switch.WORD, other
    ended = render([question, keyed], {}, False) or ""
    form = Form.LEFT_OUT
    if _THOUGHT in ended and _shows(render([question, keyed, second], {}, True)):
        form = Form.KEYS
    else:
        whole = render([question, parted, second], {}, True)
        # A list that is written as it stands is no text.
        listed = any(each in (whole or "") for each in ("'thinking'", '"thinking"'))
        if _shows(whole) and whole and _THOUGHT in whole and not listed:
            form, ended = Form.PARTS, whole
    closing = _between(ended, marks) or _after_nothing(off or "", marks) or marks.closing
    return TemplateThinking(marks=marks, switch=switch, form=form, closing=closing)


def _turn(role: str, keys: Turn) -> Turn:
    return {"role": role, **keys}


def _told(think: bool) -> dict[str, object]:
    return {"enable_thinking": think, "thinking": think}


def _with_keys(content: object, thinking: str) -> Turn:
    return {"content": content, "reasoning_content": thinking, "thinking": thinking}


def _parts(thinking: str, text: str) -> list[dict[str, str]]:
    told = [{"type": "thinking", "thinking": thinking}]
    return [*told, {"type": "text", "text": text}] if text else told


def _shows(text: str | None) -> bool:
    return text is not None and _ANSWER in text and _SECOND in text


def _between(text: str, marks: ThinkingMarks) -> str:
    """What stands between thinking and answer, where the template shows both."""
    between = text.partition(_THOUGHT)[2].partition(_ANSWER)[0]
    return between if any(mark in between for mark in marks.closes) else ""


def _after_nothing(head: str, marks: ThinkingMarks) -> str:
    """As the head of an answer ends thinking that it has only just begun."""
    for opens in marks.opens:
        _, found, after = head.rpartition(opens)
        if found and any(mark in after for mark in marks.closes):
            # A line end stands before it once.
            return "\n" + after.lstrip() if after[:1].isspace() else after
    return ""
