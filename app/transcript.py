"""One answer as it grows: ids in, text and thinking out, and the reason it ended.

Knows neither the network nor the clock's owner; the engine feeds it.
"""

import time
from collections import deque
from collections.abc import Sequence

from app.events import Completion, Drafts, FinishReason
from app.repetition import Repetition
from app.stopping import StopStrings
from models.text.detokenizer import StreamingDetokenizer
from models.text.thinking import DEFAULT_BUDGET, AnswerParts, Thinking
from models.text.tokenizer import Tokenizer


class Transcript:
    """Collects one answer.

    last_at: when the newest token was sampled, on `time.perf_counter`. thought: what the
    newest token, or the end, added to thinking. forced: ids that must come next.
    drafted, accepted: tokens that were tried ahead, and those that came.
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
        thinking: Thinking | None = None,
        think_budget: int = DEFAULT_BUDGET,
        allow_loops: bool = True,
    ) -> None:
        """`continuing`: the answer goes on from text that the prompt ends with.

        thinking: how it is told from the answer; None takes all for the answer.
        max_tokens and stop strings are for the answer, think_budget is for what comes before:
        with so many tokens thinking is ended as the model would end it.
        allow_loops: go on where the answer says the same again and again.
        """
        self.finish_reason: FinishReason | None = None
        self.tokens: list[int] = []
        self._eog = tokenizer.eog_ids
        self._detokenizer = StreamingDetokenizer(tokenizer, continuing=continuing)
        self._stops = StopStrings(stop)
        self._repetition = None if allow_loops else Repetition()
        self._prompt_tokens, self._reused_tokens = prompt_tokens, reused_tokens
        self._max_tokens = max_tokens
        self._thinking = thinking
        self._parts = None if thinking is None else AnswerParts(thinking.marks, thinking.begun)
        self._spelled = frozenset[int]() if thinking is None else thinking.marks.tokens(tokenizer)
        self._think_budget = think_budget
        self.thinking_tokens, self.thought = 0, ""
        self.forced: deque[int] = deque()
        self.drafted = self.accepted = 0
        self._text: list[str] = []
        self._thoughts: list[str] = []
        self._said: list[str] = []
        self._thought_at = 0.0
        self._started = time.perf_counter()
        self._first: float | None = None
        self.last_at = self._started
        self._keep_to_budget()

    @property
    def is_thinking(self) -> bool:
        """Whether what comes next is thinking, as far as is known."""
        return self._parts is not None and self._parts.is_thinking

    @property
    def left(self) -> int:
        """Tokens of the answer that may still come."""
        return max(0, self._max_tokens - len(self.tokens) + self.thinking_tokens)

    @property
    def drafts(self) -> Drafts:
        """What became of drafts so far."""
        return Drafts(tried=self.drafted, accepted=self.accepted, tokens=len(self.tokens))

    @property
    def thinking_s(self) -> float:
        """Seconds from the first token to the last of thinking."""
        return self._thought_at - self._first if self._first and self._thought_at else 0.0

    def add(self, token: int) -> str:
        """Take the next id; return the text to show. Sets `finish_reason` at the end."""
        self.last_at = time.perf_counter()
        self.thought = ""
        if self._first is None:
            self._first = self.last_at
        self.tokens.append(token)
        if token in self._eog:
            return self._show("", FinishReason.STOP)
        shown = self._stops.add(self._part(token))
        if self._stops.stopped:
            return self._show(shown, FinishReason.STOP)
        if not self.left:
            return self._show(shown, FinishReason.LENGTH)
        is_loop = self._repetition is not None and self._repetition.add(token, self._said[-1])
        return self._show(shown, FinishReason.LOOP if is_loop else None)

    def end(self, reason: FinishReason) -> str:
        """End the answer from outside; return the text still held back."""
        self.thought = ""
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
            thinking="".join(self._thoughts),
            thinking_tokens=self.thinking_tokens,
            thinking_s=self.thinking_s,
            said="".join(self._said),
            drafts=self.drafts,
        )

    def _part(self, token: int) -> str:
        """What of a token is the answer's; notes what is thinking."""
        parts = self._parts
        spelled = token in self._spelled and parts is not None and not parts.is_answer
        said = self._detokenizer.spell(token) if spelled else self._detokenizer.add(token)
        self._said.append(said)
        if parts is None:
            return said
        was_thinking = parts.is_thinking
        thought, answer = parts.add(said)
        self._think(thought)
        if parts.is_thinking or was_thinking:
            # A mark may have taken several tokens.
            self.thinking_tokens = len(self.tokens)
            self._thought_at = self.last_at
        self._keep_to_budget()
        return answer

    def _keep_to_budget(self) -> None:
        """Have thinking end where it has had its tokens."""
        if self._parts is None or not self._parts.is_thinking or self.forced:
            return
        if self._thinking is None:
            # It was ended, in a vocabulary that has no words for that.
            self._parts.end_thinking()
        elif self.thinking_tokens >= self._think_budget:
            self.forced.extend(self._thinking.closing)
            self._thinking = None

    def _think(self, thought: str) -> None:
        self.thought += thought
        if thought:
            self._thoughts.append(thought)

    def _show(self, text: str, reason: FinishReason | None) -> str:
        if reason is not None:
            self.finish_reason = reason
            text += self._stops.add(self._rest()) + self._stops.finish()
        self._text.append(text)
        return text

    def _rest(self) -> str:
        """What is still held back of the answer, before stop strings are looked for."""
        rest = self._detokenizer.finish()
        self._said.append(rest)
        if self._parts is None:
            return rest
        thought, answer = self._parts.add(rest)
        last_thought, last_answer = self._parts.finish()
        self._think(thought + last_thought)
        return answer + last_answer
