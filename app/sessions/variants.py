"""Messages of a chat that stand in one another's place, each with what was said after it.

A chat shows one line of messages. Where an answer was given anew, or a question changed, what
stood there stays, with all that followed it. Knows no file, nor what a message says.
"""

from collections import defaultdict, deque
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Generic, Protocol, TypeVar


class Varied(Protocol):
    """A message."""

    variants: "Variants[Any] | None"


M = TypeVar("M", bound=Varied)


class Way(Enum):
    """Whether a message is of the line that is shown, or of one aside."""

    SHOWN = 0
    GOES_ON = 1  # aside, as what is shown after the message before it
    BEGINS = 2  # aside, in place of another


@dataclass(kw_only=True, eq=False)
class Variants(Generic[M]):
    """Messages in one another's place, the oldest first.

    tails: each begins with one of them and goes on with what was said after it. Of the one that
    is shown, or is a step of another tail, only itself: what follows stands there.
    """

    tails: list[list[M]]

    def __len__(self) -> int:
        return len(self.tails)

    def number(self, message: M) -> int:
        """Which of them a message is, from 0."""
        return next(at for at, tail in enumerate(self.tails) if tail[0] is message)

    def put_aside(self, tail: list[M]) -> None:
        """Keep what was shown, from one of these messages on."""
        self.tails[self.number(tail[0])] = tail

    def take(self, number: int) -> list[M]:
        """What is to be shown, from that one of these messages on."""
        tail = self.tails[number]
        self.tails[number] = tail[:1]
        return tail


@dataclass(frozen=True, kw_only=True)
class Place(Generic[M]):
    """A message and where it stands.

    follows: the one before it, None at the beginning. number: which of its variants it is, from
    0. position: how many come before it.
    """

    message: M
    way: Way
    follows: M | None
    number: int
    position: int


def places(shown: Sequence[M]) -> list[Place[M]]:
    """All messages that a line of them leads to: itself, then one line aside after another.

    Each stands behind what it follows.
    """
    found: list[Place[M]] = []
    waiting = deque([(Way.SHOWN, 0, shown)])
    before: dict[M, M | None] = {}
    while waiting:
        way, position, tail = waiting.popleft()
        follows = before.get(tail[0]) if tail else None
        for message in tail:
            variants = message.variants
            number = variants.number(message) if variants else 0
            found.append(
                Place(message=message, way=way, follows=follows, number=number, position=position)
            )
            if variants and way is not Way.BEGINS:
                for other in variants.tails:
                    if other[0] is not message:
                        before[other[0]] = follows
                        waiting.append((Way.BEGINS, position, other))
            way = Way.GOES_ON if way is Way.BEGINS else way
            follows, position = message, position + 1
    return found


def joined(found: Sequence[Place[M]]) -> list[M]:
    """The line that is shown, its messages given their variants: what `places` has taken apart."""
    after: dict[M | None, list[Place[M]]] = defaultdict(list)
    for each in sorted(found, key=lambda each: each.number):
        each.message.variants = None
        after[each.follows].append(each)

    def line(first: Place[M]) -> list[M]:
        messages = [first.message]
        while messages[-1] in after:
            messages.append(_next(after[messages[-1]]).message)
        return messages

    for siblings in after.values():
        if len(siblings) > 1:
            going_on = _next(siblings)
            tails = [[each.message] if each is going_on else line(each) for each in siblings]
            variants = Variants(tails=tails)
            for each in siblings:
                each.message.variants = variants
    return line(_next(after[None])) if found else []


def copied(shown: Sequence[M]) -> list[M]:
    """The same with copies of all messages."""
    found = places(shown)
    copies = {each.message: copy(each.message) for each in found}
    return joined(
        [
            replace(
                each,
                message=copies[each.message],
                follows=copies[each.follows] if each.follows else None,
            )
            for each in found
        ]
    )


def _next(siblings: Sequence[Place[M]]) -> Place[M]:
    """Which of those in one another's place is shown where the one before them is."""
    return next((each for each in siblings if each.way is not Way.BEGINS), siblings[-1])
