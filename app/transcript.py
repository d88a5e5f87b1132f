"""One answer as it grows: ids in, text out, and the reason it ended.

Knows neither the network nor the clock's owner; the engine feeds it.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from app.stopping import StopStrings
from models.text.detokenizer import StreamingDetokenizer
from models.text.tokenizer import Tokenizer


class FinishReason(Enum):
    """Why an answer ended."""

    STOP = "stop"  # the model ended it, or a stop string
    LENGTH = "length"  # max_tokens
    CANCELLED = "cancelled"
    FAILED = "failed"  # an error came in between


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A finished answer and its figures.

    tokens: every sampled id, an end-of-generation id included.
    reused_tokens: prompt tokens that were not computed: held already, or beyond
    what a window of this size holds of such a prompt.
    ttft_s: seconds from the request to the first token.
    prefill_tps, decode_tps: tokens per second of each phase; 0.0 where there was none.
    """

    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    reused_tokens: int
    finish_reason: FinishReason
    ttft_s: float
    prefill_tps: float
    decode_tps: float


class Transcript:
    """Collects one answer.

    last_at: when the newest token was sampled, on `time.perf_counter`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        prompt_tokens: int,
        reused_tokens: int = 0,
        max_tokens: int,
        stop: Sequence[str] = (),
        continuing: bool = False,
    ) -> None:
        """`continuing`: the answer goes on from text that the prompt ends with."""
        self.finish_reason: FinishReason | None = None
        self.tokens: list[int] = []
        self._eog = tokenizer.eog_ids
        self._detokenizer = StreamingDetokenizer(tokenizer, continuing=continuing)
        self._stops = StopStrings(stop)
        self._prompt_tokens, self._reused_tokens = prompt_tokens, reused_tokens
        self._max_tokens = max_tokens
        self._text: list[str] = []
        self._started = time.perf_counter()
        self._first: float | None = None
        self.last_at = self._started

    def add(self, token: int) -> str:
        """Take a sampled id; return the text to show. Sets `finish_reason` at the end."""
        self.last_at = time.perf_counter()
        if self._first is None:
            self._first = self.last_at
        self.tokens.append(token)
        if token in self._eog:
            return self._show("", FinishReason.STOP)
        shown = self._stops.add(self._detokenizer.add(token))
        if self._stops.stopped:
            return self._show(shown, FinishReason.STOP)
        reached = len(self.tokens) >= self._max_tokens
        return self._show(shown, FinishReason.LENGTH if reached else None)

    def end(self, reason: FinishReason) -> str:
        """End the answer from outside; return the text still held back."""
        return self._show("", reason)

    @property
    def decode_tps(self) -> float:
        """Tokens per second after the first."""
        if self._first is None or self.last_at <= self._first:
            return 0.0
        return (len(self.tokens) - 1) / (self.last_at - self._first)

    def completion(self) -> Completion:
        """The finished answer; call once `finish_reason` is set."""
        assert self.finish_reason is not None
        ttft = 0.0 if self._first is None else self._first - self._started
        computed = self._prompt_tokens - self._reused_tokens
        return Completion(
            text="".join(self._text),
            tokens=tuple(self.tokens),
            prompt_tokens=self._prompt_tokens,
            reused_tokens=self._reused_tokens,
            finish_reason=self.finish_reason,
            ttft_s=ttft,
            prefill_tps=computed / ttft if ttft > 0 else 0.0,
            decode_tps=self.decode_tps,
        )

    def _show(self, text: str, reason: FinishReason | None) -> str:
        if reason is not None:
            self.finish_reason = reason
            text += self._stops.add(self._detokenizer.finish()) + self._stops.finish()
        self._text.append(text)
        return text
