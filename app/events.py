"""What a run tells of its answers as they grow, and what each has become in the end.

Plain values: knows no network, no cache, and not who shows them.
"""

from dataclasses import dataclass, field
from enum import Enum


class FinishReason(Enum):
    """Why an answer ended."""

    STOP = "stop"  # the model ended it, or a stop string
    LENGTH = "length"  # max_tokens
    LOOP = "loop"  # it said the same again and again
    CANCELLED = "cancelled"
    FAILED = "failed"  # an error came in between


@dataclass(frozen=True, kw_only=True)
class Drafts:
    """Tokens that were drafted from the context (see `prompt_lookup`), of an answer so far.

    tried: all of them; accepted: those that the answer says. tokens: of the answer.
    """

    tried: int = 0
    accepted: int = 0
    tokens: int = 0

    @property
    def share(self) -> float:
        """Of the drafted tokens, those that were accepted; 0.0 where there were none."""
        return self.accepted / self.tried if self.tried else 0.0

    @property
    def tokens_per_step(self) -> float:
        """Tokens of the answer for each pass through the network."""
        return self.tokens / max(1, self.tokens - self.accepted)


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A finished answer and its figures.

    text: the answer; thinking: what was thought before it, of which text has nothing.
    tokens: every id, those of thinking and an end-of-generation id included.
    said: all that the tokens say, marks of thinking included.
    reused_tokens: prompt tokens that were not computed: held already, or beyond
    what a window of this size holds of such a prompt.
    ttft_s: seconds from the request to the first token.
    prefill_tps, decode_tps: tokens per second of each phase; 0.0 where there was none.
    thinking_tokens: those of thinking and its marks; thinking_s: seconds that they took.
    drafts: what became of drafted tokens.
    """

    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    reused_tokens: int
    finish_reason: FinishReason
    ttft_s: float
    prefill_tps: float
    decode_tps: float
    thinking: str = ""
    thinking_tokens: int = 0
    thinking_s: float = 0.0
    said: str = ""
    drafts: Drafts = field(default_factory=Drafts)


@dataclass(frozen=True, kw_only=True)
class Truncated:
    """The oldest tokens of a prompt were dropped to fit the window."""

    kept: int
    dropped: int


@dataclass(frozen=True, kw_only=True)
class PrefillProgress:
    """Prompt tokens in the cache so far, reused ones included.

    seconds: time spent on the ones that were computed.
    """

    done: int
    total: int
    reused: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class TextChunk:
    """The text that one more token of a row completed (possibly none).

    tokens: of the answer so far. at: when this one was sampled, on `time.perf_counter`.
    drafts: what became of those so far.
    """

    row: int
    text: str
    tokens: int
    at: float
    drafts: Drafts = field(default_factory=Drafts)


@dataclass(frozen=True, kw_only=True)
class ThinkingChunk:
    """As `TextChunk`, of what is thought before the answer; its marks are in no text.

    thinking_tokens: those of them so far. seconds: that they took.
    """

    row: int
    text: str
    tokens: int
    thinking_tokens: int
    seconds: float
    at: float
    drafts: Drafts = field(default_factory=Drafts)


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A row has ended; the last event of each row."""

    row: int
    completion: Completion


Event = Truncated | PrefillProgress | ThinkingChunk | TextChunk | Finished
