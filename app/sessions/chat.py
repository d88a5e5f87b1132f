"""A chat and its messages, as they are shown, saved and given to a model."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import groupby, takewhile

from app.inert import inert_line
from app.sessions.variants import Place, Variants, copied, joined
from kvcache.errors import short
from models.text.messages import Message, Role

_TITLE_LENGTH = 48
_MOST_SHOWN = 100


class State(Enum):
    """How far a message is."""

    COMPLETE = "complete"
    STREAMING = "streaming"  # still growing, or was when the program died
    STOPPED = "stopped"  # ended by the user
    FAILED = "failed"  # ended by an error


@dataclass(frozen=True, kw_only=True)
class Attachment:
    """A text that goes along with a question."""

    name: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Thought:
    """What a model thought before an answer, without its marks, and what that took."""

    text: str
    tokens: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What an answer cost; the names are those of `app.events.Completion`."""

    model: str
    tokens: int
    prompt_tokens: int
    reused_tokens: int
    finish_reason: str
    ttft_s: float
    prefill_tps: float
    decode_tps: float


@dataclass(kw_only=True, eq=False)
class ChatMessage:
    """One turn.

    end: tokens of the conversation up to its end, as the model last read it;
    None while no model has.
    error: why it failed, for a message that has. variants: those that stand in one another's
    place, this one too; None where there never was another.
    """

    role: Role
    text: str
    attachments: tuple[Attachment, ...] = ()
    state: State = State.COMPLETE
    figures: Figures | None = None
    end: int | None = None
    error: str | None = None
    thought: Thought | None = None
    variants: "Variants[ChatMessage] | None" = None

    @property
    def has_words(self) -> bool:
        """Whether anything was said or thought."""
        return bool(self.text or self.thought)

    @property
    def content(self) -> str:
        """The text with its attachments, as a model reads it."""
        return "\n\n".join(filter(None, [*map(_quoted, self.attachments), self.text]))


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What the store has of a chat since it was last loaded or saved.

    id: the chat's row. stamp: what the store drew at that time. messages: the
    row of each, and what is in it.
    """

    id: int
    stamp: int
    title: str
    context: tuple[object, ...]
    messages: Mapping[ChatMessage, tuple[int, tuple[object, ...]]]


@dataclass(kw_only=True, eq=False)
class Chat:
    """A conversation with its settings.

    sampling: settings of its own, by name, in place of the user's. left_out: messages at the
    start that the model does not read, as its window does not hold them.
    saved: what is on disk of it; the store's alone to change. damaged: how many
    messages could not be read whole. seen: what it would hold on disk that needs no saving, as
    it is another chat's.
    """

    title: str = ""
    model: str = ""
    system: str = ""
    sampling: Mapping[str, float] = field(default_factory=dict)
    left_out: int = 0
    messages: list[ChatMessage] = field(default_factory=list)
    saved: Saved | None = None
    damaged: int = 0
    seen: tuple[object, ...] = ()

    @property
    def id(self) -> int | None:
        """Its row in the store, None while it is not saved."""
        return None if self.saved is None else self.saved.id

    def copy_until(self, at: ChatMessage) -> "Chat":
        """An unsaved copy that ends with the answer `at`, or before the question `at`."""
        return self._copy(self.messages.index(at) + (at.role is Role.ASSISTANT))

    def copy(self) -> "Chat":
        """An unsaved copy."""
        return self._copy(len(self.messages))

    def _copy(self, length: int) -> "Chat":
        return Chat(
            title=_title_of_copy(self.title),
            model=self.model,
            system=self.system,
            sampling=self.sampling,
            left_out=min(self.left_out, length),
            messages=copied(self.messages[:length]),
        )

    def say(self, message: ChatMessage, instead_of: ChatMessage | None = None) -> None:
        """Add a message: at the end, or as another variant, which is shown, of one that there is.

        What is said next follows the new one; what had followed the other one stays with it.
        """
        if instead_of is None:
            self.messages.append(message)
        else:
            at = self.messages.index(instead_of)
            variants = instead_of.variants or Variants(tails=[[instead_of]])
            variants.put_aside(self.messages[at:])
            variants.tails.append([message])
            message.variants = instead_of.variants = variants
            self._go_on(at, [message])
        self.title = self.title or title_of(self.messages)

    def choose(self, message: ChatMessage, number: int) -> ChatMessage:
        """Show that variant of a message, from 0, with what was said after it; returns it."""
        assert message.variants is not None
        at = self.messages.index(message)
        message.variants.put_aside(self.messages[at:])
        self._go_on(at, message.variants.take(number))
        return self.messages[at]

    def withdraw(self, message: ChatMessage, shows: ChatMessage | None = None) -> None:
        """Take out a message and what follows it.

        shows: the variant that is shown in its place; else the one before it, where there are some.
        """
        at = self.messages.index(message)
        tail: list[ChatMessage] = []
        if message.variants is not None and len(message.variants) > 1:
            number = message.variants.number(message)
            del message.variants.tails[number]
            number = message.variants.number(shows) if shows else max(number - 1, 0)
            tail = message.variants.take(number)
        self._go_on(at, tail)

    @property
    def last_varied(self) -> list[ChatMessage]:
        """Of the last message and the question before it, those that have other variants."""
        last = reversed(self.messages[-2:])
        return [each for each in last if each.variants and len(each.variants) > 1]

    def restore(self, found: Sequence[Place[ChatMessage]]) -> None:
        """Show what was taken apart by `places`."""
        messages = joined(found)
        pairs = zip(self.messages, messages, strict=False)
        same = sum(1 for _ in takewhile(lambda pair: pair[0] is pair[1], pairs))
        self._go_on(same, messages[same:])

    def _go_on(self, at: int, tail: Sequence[ChatMessage]) -> None:
        """Show other messages from a place on."""
        self.messages[at:] = tail
        if self.left_out and at <= self.left_out:
            # What the model reads of this is known once it is asked.
            self.left_out = 0
            for each in self.messages:
                each.end = None

    @property
    def context(self) -> tuple[object, ...]:
        """What a model is given beside the messages."""
        return self.system, self.left_out, tuple(sorted(self.sampling.items()))

    @property
    def sampling_line(self) -> str:
        """The sampling settings of its own."""
        return sampling_line(self.sampling)

    def turns(self, *, continues: bool = False) -> list[tuple[ChatMessage, ...]]:
        """Messages with text, those of one speaker in a row together.

        Chat formats want speakers to take turns; a question whose answer was
        stopped before its first word is followed by another question. continues: the last
        message goes on, so it counts though it is no more than thinking.
        """
        last = self.messages[-1:] if continues else []
        said = [message for message in self.messages if message.content or message in last]
        return [tuple(run) for _, run in groupby(said, key=lambda message: message.role)]

    def turns_left_out(self, *, continues: bool = False) -> int:
        """How many of the turns the model does not read."""
        unread = set(self.messages[: self.left_out])
        return sum(run[0] in unread for run in self.turns(continues=continues))

    def leave_out(self, turns: int, *, continues: bool = False) -> None:
        """Have the model not read so many turns."""
        kept = self.turns(continues=continues)[turns:] if turns else ()
        self.left_out = self.messages.index(kept[0][0]) if kept else 0

    def prompt(self, *, continues: bool = False) -> tuple[Message, ...]:
        """The system prompt, where there is one, and the turns, as a model reads them."""
        opening = [Message(role=Role.SYSTEM, content=self.system)] if self.system else []
        turns = [
            Message(
                role=run[0].role,
                content="\n\n".join(each.content for each in run),
                thinking="\n\n".join(each.thought.text for each in run if each.thought),
            )
            for run in self.turns(continues=continues)
        ]
        return (*opening, *turns)


def sampling_line(values: Mapping[str, float]) -> str:
    """Settings of sampling by name, in a line."""
    return " ".join(f"{name} {value:g}" for name, value in values.items())


def title_of(messages: Sequence[ChatMessage]) -> str:
    """A title from the first question: its first line, shortened."""
    first = next((each.text for each in messages if each.role is Role.USER and each.text), "")
    line = " ".join(first.split())
    return line if len(line) <= _TITLE_LENGTH else line[: _TITLE_LENGTH - 1].rstrip() + "…"


def _title_of_copy(title: str) -> str:
    """A copy of a copy is counted."""
    known = re.fullmatch(r"(.*) \(fork(?: ([1-9]\d{0,5}))?\)", title, re.DOTALL)
    return f"{known[1]} (fork {int(known[2] or 1) + 1})" if known else f"{title} (fork)"


def shown_title(title: str) -> str:
    """A title in a line, whatever a user or another program made it."""
    return short(inert_line(" ".join(title.split())), _MOST_SHOWN) or "untitled"


def _quoted(attachment: Attachment) -> str:
    """An attachment as a fenced block whose fence its text does not contain."""
    fence = "```"
    while fence in attachment.text:
        fence += "`"
    return f"{attachment.name}:\n{fence}\n{attachment.text.rstrip()}\n{fence}"
