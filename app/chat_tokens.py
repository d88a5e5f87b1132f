"""A chat as the token ids of one model: what is new in it is tokenized, the rest is kept.

Knows no cache and no thread; who generates says what was answered.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile
from threading import Event as Flag

from app.events import Completion, FinishReason
from models.loader import LoadedModel
from models.text.builtin_templates import TemplateSource
from models.text.messages import Message, Role, conversation
from models.text.template_thinking import Switch
from models.text.thinking import Thinking, parted
from models.text.tokenized_text import TokenizedText

# Ids that are kept of answers, some megabytes of them: many answers of a short chat.
_MOST_IDS = 1 << 20
_GUESS = "this file has no chat template; ChatML is a guess, `ember run --raw` sends text as it is"


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A conversation as token ids.

    ends: for each message, the ids up to the end of what it says, all of them for the last;
    estimates where the chat format changes what is said, 0 for a message that was left out.
    dropped: messages left out at the start, the system prompt not counted. thinking: how the
    answer thinks; None for a model that does not. notes: what the user should know of this
    prompt, a line each.
    """

    ids: list[int]
    ends: tuple[int, ...]
    dropped: int
    thinking: Thinking | None
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Mark:
    """Where a message ends in a prompt: characters and ids up to the end of what it says."""

    message: Message
    at: int
    end: int


class ChatTokens:
    """Makes the prompts of a chat with one model; another chat may follow on it.

    An answer keeps the ids that the model gave, where it is told (`answered`): its text,
    tokenized again, may come out as others, and a cache would compute all after them anew.
    So do earlier answers, and others to the same question, as many as `_MOST_IDS` allow.
    A conversation that goes on from none of them is tokenized as its text stands, from
    the last special token before the change. So it is after an answer whose thinking the
    template leaves out.
    """

    def __init__(
        self, loaded: LoadedModel, recall: Callable[[str], TokenizedText | None] | None = None
    ) -> None:
        """recall: gives a text that begins as another does, with ids that a model gave for it."""
        self._recall = recall
        self._template, self._tokenizer = loaded.template, loaded.tokenizer
        # The last prompt; the last one whose ids are those of its text; the former answered; such
        # prompts and answers of before, the newest last.
        self._asked = self._text = TokenizedText.of(self._tokenizer, "")
        self._answered: TokenizedText | None = None
        self._answers: tuple[TokenizedText, ...] = ()
        self._marks: list[_Mark] = []
        # The last conversation that did not fit, all of it, and where its messages end.
        self._whole = self._text
        self._whole_marks: list[_Mark] = []
        # How many tokens the last system prompt was, in the format of then.
        self._system: tuple[TemplateSource, str | None, bool | None, int] | None = None

    def settle(self, cancel: Flag | None = None) -> Iterator[str]:
        """Try the chat format; gives what is to be said of it before anything is asked.

        `cancel` may be set from any thread. Raises ChatTemplateError.
        """
        self._template.settle(cancel)
        notes = self._template.take_notes()
        yield from notes
        if self._template.source is TemplateSource.GUESS and not notes:
            yield _GUESS

    @property
    def thinks(self) -> bool:
        """Whether the model may think; settles the template, as does the next."""
        return self._template.thinking.marks is not None

    @property
    def has_switch(self) -> bool:
        """Whether the model can be told to think or not."""
        return self._template.thinking.switch is not Switch.NONE

    def system_tokens(
        self, system: str | None, cancel: Flag | None = None, *, think: bool | None = None
    ) -> int:
        """How many tokens begin every conversation under this system prompt.

        What two conversations share before the user's words, templates' own default included.
        """
        counted = self._template.source, system, think
        if self._system is None or self._system[:3] != counted:
            first, second = (
                self._template.encode(conversation(text, system=system), think=think, cancel=cancel)
                for text in ("a", "0")
            )
            shared = takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
            self._system = (self._template.source, system, think, sum(1 for _ in shared))
        return self._system[3]

    def prompt(
        self,
        messages: Sequence[Message],
        *,
        continues: bool = False,
        think: bool | None = None,
        left_out: int = 0,
        room: int | None = None,
        cancel: Flag | None = None,
    ) -> Prompt:
        """The ids that make the model answer a conversation, or go on with its last answer.

        think: as for `ChatTemplate.render`. left_out: so many of the oldest turns are not read.
        room: leave out the oldest turns until no more ids than this are left; the system
        prompt and the last question stay. `cancel` may be set from any thread. Raises
        ChatTemplateError.
        """
        dropped = left_out if room is None else self._excess(messages, room, think, cancel)
        first = _first_turn(messages)
        kept = [*messages[:first], *messages[first + dropped :]]
        asked = kept[:-1] if continues else kept
        head = self._template.render(asked, think=think, cancel=cancel)
        marks = self._template.thinking.marks
        opened = "" if marks is None else marks.opened_by(head)
        begun = self._begun(head, opened, kept[-1]) if continues else ""
        said = self._tokenized(head, begun)
        self._marks = _marked(kept, said, self._marks)
        ends = _ends(self._marks, said)
        return Prompt(
            ids=said.ids,
            ends=(*ends[:first], *[0] * dropped, *ends[first:]),
            dropped=dropped,
            thinking=self._thinking(opened + begun),
            notes=tuple(self._template.take_notes()),
        )

    def answered(self, completion: Completion) -> None:
        """Take what the model answered to the last prompt."""
        tokens = list(completion.tokens)
        if tokens and tokens[-1] in self._tokenizer.eog_ids:
            tokens.pop()
        elif completion.finish_reason is FinishReason.STOP:
            # Cut at a stop string: the tokens say more than the text.
            return
        # Of a prompt that was cut, the ids are not those that the model has read.
        if completion.prompt_tokens == len(self._asked.ids):
            self._answered = self._asked.spoken(completion.said, tokens)
            self._answers = _newest(*self._answers, self._answered)

    @property
    def said(self) -> TokenizedText | None:
        """The last prompt with its answer, where what was answered is known."""
        return self._answered

    def _begun(self, head: str, opened: str, message: Message) -> str:
        """What an answer that goes on has begun with: as the model wrote it, where that is known.

        opened: how the head ends, where thinking has begun in it.
        """
        known = self._template.thinking
        if known.marks is None:
            return message.content
        for each in reversed(self._answers):
            if not each.text.startswith(head):
                continue
            written = each.text[len(head) :]
            if parted(known.marks, opened + written) == (message.thinking, message.content):
                return written
        return known.marks.written(
            message.thinking, message.content, opened=bool(opened), closing=known.closing
        )

    def _thinking(self, begun: str) -> Thinking | None:
        """How an answer thinks that has begun like this."""
        known = self._template.thinking
        if known.marks is None:
            return None
        closing = self._tokenizer.encode(known.closing, add_special=False)
        return Thinking(marks=known.marks, begun=begun, closing=tuple(closing))

    def _tokenized(self, head: str, begun: str) -> TokenizedText:
        """A rendered conversation, then the beginning of an answer to it."""
        last, self._answered = self._answered, None
        text = head + begun
        before = [each for each in reversed(self._answers) if text.startswith(each.text)]
        if before:
            longest = max(before, key=lambda each: len(each.text))
            self._asked = longest.then(text[len(longest.text) :])
            # Where messages end is known in the ids of the last prompt alone.
            self._marks = self._marks if longest is last else []
            return self._asked
        if self._recall is not None and (known := self._recall(text)) is not None:
            self._asked, self._marks = known.changed_to(text), []
            return self._asked
        self._text = self._text.changed_to(head)
        self._marks = [mark for mark in self._marks if mark.at <= self._text.kept]
        self._asked = self._text.then(begun) if begun else self._text
        return self._asked

    def _excess(
        self, messages: Sequence[Message], room: int, think: bool | None, cancel: Flag | None
    ) -> int:
        """How many messages after the system prompt must go for the rest to fit `room`."""
        shown = self._template.render(messages, think=think, cancel=cancel)
        self._whole = said = self._whole.changed_to(shown)
        known = [mark for mark in self._whole_marks if mark.at <= said.kept]
        self._whole_marks = _marked(messages, said, known)
        ends = _ends(self._whole_marks, said)
        first = _first_turn(messages)
        kept_head = ends[first - 1] if first else 0
        for count in range(len(messages) - first):
            opens_turn = messages[first + count].role is Role.USER
            head = kept_head if count else 0
            start = ends[first + count - 1] if count else 0
            if opens_turn and head + ends[-1] - start <= room:
                return count
        users = [at for at, each in enumerate(messages) if each.role is Role.USER]
        return max(max(users, default=0) - first, 0)


def _newest(*answers: TokenizedText) -> tuple[TokenizedText, ...]:
    """The last of them, and as many before it as may be kept."""
    counts = accumulate(len(each.ids) for each in reversed(answers))
    kept = max(sum(1 for _ in takewhile(lambda count: count <= _MOST_IDS, counts)), 1)
    return answers[-kept:]


def system_of(messages: Sequence[Message]) -> str | None:
    """The system prompt of a conversation."""
    return next((each.content for each in messages if each.role is Role.SYSTEM), None)


def _first_turn(messages: Sequence[Message]) -> int:
    return 1 if messages and messages[0].role is Role.SYSTEM else 0


def _marked(
    messages: Sequence[Message], said: TokenizedText, marks: Sequence[_Mark] = ()
) -> list[_Mark]:
    """`marks` as long as they are of the same messages, then those of the others.

    A message that the format leaves out, or writes otherwise, has no ids of its own.
    """
    pairs = zip(marks, messages, strict=False)
    known = [mark for mark, _ in takewhile(lambda pair: pair[0].message == pair[1], pairs)]
    at = known[-1].at if known else 0
    for message in messages[len(known) :]:
        words = message.content.strip()
        thought = said.text.find(message.thinking, at) if message.thinking else -1
        found = said.text.find(words, at)
        if 0 <= thought <= found:
            # An answer's words may be in what was thought before it.
            found = said.text.find(words, thought + len(message.thinking))
        at = at if found < 0 else found + len(words)
        known.append(_Mark(message=message, at=at, end=said.ids_before(at)))
    return known


def _ends(marks: Sequence[_Mark], said: TokenizedText) -> list[int]:
    return [*(mark.end for mark in marks[:-1]), len(said.ids)]
