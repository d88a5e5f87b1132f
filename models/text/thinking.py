"""What a model says before its answer: the marks around it, and how an answer is parted by them.

Knows no template and no network. Marks are texts, whether the vocabulary has tokens for them
or not, and count only where they belong: what opens thinking at the beginning of an answer,
what closes it after that. Elsewhere they are words like any others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from models.text.tokenizer import Tokenizer

DEFAULT_BUDGET = 8192


@dataclass(frozen=True, kw_only=True)
class ThinkingMarks:
    """What a family of models writes around its thinking; none of it is shown.

    opens: begin thinking. closes: end it. parts: stand between two parts of it. answers: may
    begin an answer, which one of `ends` then ends. opening, closing: how the family writes
    what stands before and after, line ends included.
    """

    opens: tuple[str, ...]
    closes: tuple[str, ...]
    opening: str
    closing: str
    parts: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()

    def opened_by(self, prompt: str) -> str:
        """The end of a prompt inside which thinking has begun; "" where it has not."""
        shown = prompt.rstrip()
        found = [prompt[len(shown) - len(mark) :] for mark in self.opens if shown.endswith(mark)]
        return max(found, key=len, default="")

    def written(self, thinking: str, answer: str, *, opened: bool, closing: str) -> str:
        """An answer as a model would have written it; unfinished thinking where it is empty.

        opened: the prompt has opened thinking. closing: as the template writes it.
        """
        if not thinking:
            return closing + answer if opened else answer
        begun = thinking if opened else self.opening + thinking
        return begun + closing + answer if answer else begun

    def tokens(self, tokenizer: Tokenizer) -> frozenset[int]:
        """The control tokens that marks are made of."""
        marks = (*self.opens, *self.closes, *self.parts, *self.answers, *self.ends)
        special = ((id_, tokenizer.text(id_)) for id_ in tokenizer.special_ids)
        return frozenset(id_ for id_, text in special if text and any(text in m for m in marks))


@dataclass(frozen=True, kw_only=True)
class Thinking:
    """How one answer thinks.

    begun: what of it, or of its opening mark, the prompt ends with. closing: ids that end
    thinking, as the template writes it.
    """

    marks: ThinkingMarks
    begun: str
    closing: tuple[int, ...]


def _tags(name: str) -> ThinkingMarks:
    """`<name>` and `</name>`, each on a line of its own."""
    opens, closes = f"<{name}>", f"</{name}>"
    return ThinkingMarks(
        opens=(opens,), closes=(closes,), opening=f"{opens}\n", closing=f"\n{closes}\n\n"
    )


_START, _SAID = "<|end|><|start|>assistant", "<|message|>"
_UNSHOWN = tuple(f"<|channel|>{name}{_SAID}" for name in ("analysis", "commentary"))
_FINAL = f"<|channel|>final{_SAID}"
_CHANNELS = ThinkingMarks(
    opens=_UNSHOWN,
    closes=(_START + _FINAL,),
    parts=tuple(_START + each for each in _UNSHOWN),
    answers=(_FINAL,),
    opening=_UNSHOWN[0],
    closing=_START + _FINAL,
)
_BRACKETS = ThinkingMarks(
    opens=("[THINK]",), closes=("[/THINK]",), opening="[THINK]", closing="[/THINK]"
)
_GEMMA = ThinkingMarks(
    opens=("<|channel>thought",),
    closes=("<channel|>",),
    opening="<|channel>thought\n",
    closing="\n<channel|>",
)
_COHERE = ThinkingMarks(
    opens=("<|START_THINKING|>",),
    closes=("<|END_THINKING|>",),
    answers=("<|START_RESPONSE|>", "<|START_TEXT|>"),
    ends=("<|END_RESPONSE|>", "<|END_TEXT|>"),
    opening="<|START_THINKING|>",
    closing="<|END_THINKING|><|START_RESPONSE|>",
)
_GRANITE = ThinkingMarks(
    opens=("<think>",),
    closes=("</think>",),
    answers=("<response>",),
    ends=("</response>",),
    opening="<think>",
    closing="</think>\n<response>",
)
# What tells a family, in a template or else as a token of the vocabulary; the first counts.
_FAMILIES = (
    (("<|channel|>", "<|message|>"), _CHANNELS),
    (("[THINK]",), _BRACKETS),
    (("<|channel>",), _GEMMA),
    (("<|START_THINKING|>",), _COHERE),
    (("<think>", "<response>"), _GRANITE),
    (("</think>",), _tags("think")),
    (("</thinking>",), _tags("thinking")),
    (("</seed:think>",), _tags("seed:think")),
    (("</mm:think>",), _tags("mm:think")),
)


def thinking_marks(template: str, tokenizer: Tokenizer) -> ThinkingMarks | None:
    """The marks of a model with this chat template, or with this vocabulary; None for none."""
    for tells, marks in _FAMILIES:
        if all(each in template for each in tells):
            return marks
    for tells, marks in _FAMILIES:
        if all(tokenizer.id_of(each) is not None for each in tells):
            return marks
    return None


def no_switch(*, thinks: bool, budget: str) -> str:
    """That a model cannot be told to think or not. budget: how its tokens are set to 0."""
    if not thinks:
        return "this model's chat format knows no thinking"
    return (
        "this model's chat format has no switch for thinking: "
        f"{budget} ends it as soon as it begins"
    )


class _Part(Enum):
    BEFORE = "nothing has been said"
    THINKING = "inside the marks"
    BETWEEN = "thinking has ended, the answer has not begun"
    ANSWER = "the answer"


class AnswerParts:
    """Parts what a model says into thinking and answer, while it comes, without the marks.

    What may be the beginning of a mark is held back; so is white space next to a mark, which
    belongs to neither part.
    """

    def __init__(self, marks: ThinkingMarks, begun: str = "") -> None:
        """begun: what has been said before; it is not given again."""
        self._marks = marks
        self._part = _Part.BEFORE
        self._held = ""
        # Whether nothing of this part has been given yet; whether an answer's mark stood there.
        self._is_fresh, self._is_wrapped = True, False
        self.add(begun)
        if self.is_thinking:
            self._held = self._held.lstrip()

    @property
    def is_thinking(self) -> bool:
        """Whether what comes next is thinking, as far as is known."""
        return self._part is _Part.THINKING

    @property
    def is_answer(self) -> bool:
        """Whether the answer has begun."""
        return self._part is _Part.ANSWER

    def add(self, text: str) -> tuple[str, str]:
        """Take new text; what is now certain of thinking, and of the answer."""
        self._held += text
        thinking, answer = "", ""
        if self._part is _Part.BEFORE:
            self._begin()
        if self._part is _Part.THINKING:
            thinking = self._think()
        if self._part is _Part.BETWEEN:
            self._turn_to_answer()
        if self._part is _Part.ANSWER:
            answer = self._answer()
        return thinking, answer

    def end_thinking(self) -> None:
        """Take what comes next for the answer, as if a mark had closed thinking."""
        self._part, self._held = _Part.BETWEEN, ""

    def finish(self) -> tuple[str, str]:
        """What is still held back, where no more comes; half a mark that is no text is dropped."""
        held, self._held = self._held, ""
        size = size_of_beginning(held, self._expected)
        if ">" in held[len(held) - size :]:
            held = held[: len(held) - size]
        if self._part is _Part.THINKING:
            return held, ""
        return "", held if self._part is not _Part.BETWEEN else ""

    @property
    def _expected(self) -> tuple[str, ...]:
        """The marks that may come next."""
        marks = self._marks
        if self._part is _Part.THINKING:
            return (*marks.closes, *marks.parts)
        return (*marks.opens, *marks.answers) if self._part is _Part.BEFORE else ()

    def _begin(self) -> None:
        begun = self._held.lstrip()
        opens, answers = self._marks.opens, self._marks.answers
        if mark := next((each for each in opens if begun.startswith(each)), ""):
            self._held, self._part = begun.removeprefix(mark), _Part.THINKING
        elif any(begun.startswith(each) for each in answers):
            self._part = _Part.BETWEEN
        elif not any(each.startswith(begun) for each in self._expected):
            self._part = _Part.ANSWER

    def _think(self) -> str:
        marks, given = self._marks, ""
        while self._part is _Part.THINKING:
            if self._is_fresh:
                self._held = self._held.lstrip()
            at, mark = _first(self._held, self._expected)
            if not mark:
                return given + self._certain_thinking()
            given += self._held[:at].rstrip()
            self._held = self._held[at + len(mark) :]
            if mark in marks.closes:
                self._part = _Part.BETWEEN
            elif given or not self._is_fresh:
                self._held = "\n\n" + self._held.lstrip()
            self._is_fresh = self._is_fresh and not given
        return given

    def _certain_thinking(self) -> str:
        size = size_of_beginning(self._held, self._expected)
        given = self._held[: len(self._held) - size].rstrip()
        self._held = self._held[len(given) :]
        self._is_fresh = self._is_fresh and not given
        return given

    def _turn_to_answer(self) -> None:
        self._held = self._held.lstrip()
        answers = self._marks.answers
        if mark := next((each for each in answers if self._held.startswith(each)), ""):
            self._held, self._is_wrapped = self._held.removeprefix(mark).lstrip(), True
        waits = not self._is_wrapped and any(each.startswith(self._held) for each in answers)
        if self._held and not waits:
            self._part = _Part.ANSWER

    def _answer(self) -> str:
        if not self._is_wrapped or not self._marks.ends:
            given, self._held = self._held, ""
            return given
        for mark in self._marks.ends:
            self._held = self._held.replace(mark, "")
        size = size_of_beginning(self._held, self._marks.ends)
        given = self._held[: len(self._held) - size]
        self._held = self._held[len(given) :]
        return given


def parted(marks: ThinkingMarks, text: str) -> tuple[str, str]:
    """Thinking and answer of all that a model has said."""
    parts = AnswerParts(marks)
    thinking, answer = parts.add(text)
    last_thinking, last_answer = parts.finish()
    return thinking + last_thinking, answer + last_answer


def _first(text: str, marks: Sequence[str]) -> tuple[int, str]:
    """Where the first of some marks stands, and which; "" for none."""
    found = [(at, mark) for mark in marks if (at := text.find(mark)) >= 0]
    return min(found, default=(0, ""))


def size_of_beginning(text: str, marks: Sequence[str]) -> int:
    """Length of the longest end of a text that begins one of some marks."""
    sizes = (
        size
        for mark in marks
        for size in range(1, min(len(mark), len(text) + 1))
        if text.endswith(mark[:size])
    )
    return max(sizes, default=0)
