"""Which conversation the model's cache holds, beside the one that is shown.

Knows no cache but its figures.
"""

from collections.abc import Sequence
from itertools import takewhile

from app.chat.tier_counts import emptied, rewound
from app.sessions.chat import Chat, ChatMessage
from kvcache.stats import CacheStats


class Held:
    """The chat whose tokens the cache holds, and what of it was read; none before a question."""

    def __init__(self) -> None:
        self._chat: Chat | None = None
        self._read: list[ChatMessage] = []

    def begin(self, chat: Chat) -> None:
        """The model is given this chat."""
        if chat is not self._chat:
            self._chat, self._read = chat, []

    def read(self, chat: Chat) -> None:
        """The model has read all of this chat."""
        self._chat, self._read = chat, list(chat.messages)

    def move(self, chat: Chat, copy: Chat) -> None:
        """Go on with a copy of a chat, which has the messages of its beginning."""
        if chat is self._chat:
            known = min(_shared(self._read, chat.messages), len(copy.messages))
            self._chat, self._read = copy, [*copy.messages[:known], *self._read[known:]]

    def layers(self, chat: Chat, layers: Sequence[CacheStats]) -> Sequence[CacheStats]:
        """The figures of a chat: empty while the cache holds another."""
        return layers if self._chat in (None, chat) else emptied(layers)

    def expected(self, chat: Chat, total: CacheStats) -> CacheStats:
        """Figures by which to mark what is shown, as the next question will find it.

        Of what was taken back, or is another variant, the cache still holds the tokens.
        """
        shared = _shared(self._read, chat.messages)
        if chat is not self._chat or shared == len(self._read):
            return total
        return rewound(total, shared=_end(chat.messages[:shared]), end=_end(chat.messages))


def _shared(some: Sequence[ChatMessage], others: Sequence[ChatMessage]) -> int:
    """How many messages both begin with."""
    pairs = zip(some, others, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] is pair[1], pairs))


def _end(messages: Sequence[ChatMessage]) -> int:
    """Tokens up to the end of the last message that a model has read."""
    known = (each.end for each in reversed(messages))
    return next((end for end in known if end is not None), 0)
