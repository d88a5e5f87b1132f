"""One run over a batch of prompts: prefill in steps, then decode to the last row's end.

Yields plain events. Knows no command line and no chat, and does not know where
its caches come from or what they still held. Drafts (see `prompt_lookup`) change no token: each
is drawn as it would be without, and what the caches took of others is taken back.
"""

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from threading import Event as Flag

import mlx.core as mx
import numpy as np

from app.events import (
    Event,
    Finished,
    FinishReason,
    PrefillProgress,
    TextChunk,
    ThinkingChunk,
)
from app.prompt_lookup import PromptLookup
from app.sampling import Sampler, require_finite
from app.transcript import Transcript
from kvcache import CacheError, EmberError, RowsKVCache, TwoTierKVCache
from models.network.llama import Model, StepStoppedError

# Often enough for flat memory, rarely enough to cost nothing.
_RELEASE_TOKENS = 256


@dataclass(frozen=True, kw_only=True)
class Row:
    """One prompt of the batch and its growing answer."""

    index: int
    prompt: Sequence[int]
    transcript: Transcript


class Generation:
    """Feeds a batch through the model until every row has ended.

    rows: prompts of any length; shorter ones are padded on the left, as the
    caches must have been told. The caches may already hold the first tokens.
    prefill_step: prompt tokens per step; `cancel` is heard between steps, and in long ones.
    pipelined: queue token n+1 before reading token n. lookup: drafts for the only row of two-tier
    caches, if any.
    """

    def __init__(
        self,
        model: Model,
        caches: Sequence[TwoTierKVCache] | Sequence[RowsKVCache],
        rows: Sequence[Row],
        sampler: Sampler,
        *,
        prefill_step: int,
        pipelined: bool,
        cancel: Flag,
        lookup: PromptLookup | None = None,
    ) -> None:
        self._model, self._caches, self._sampler = model, caches, sampler
        self._rows = list(rows)
        self._prefill_step, self._pipelined, self._cancel = prefill_step, pipelined, cancel
        self._lookup = lookup

    def events(self) -> Iterator[Event]:
        """Run to the end; after a cancel, or before an error, each row ends with what it has."""
        try:
            logits = yield from self._prefill()
            if logits is not None:
                yield from self._decode(logits)
        except EmberError:
            self._rows = [row for row in self._rows if row.transcript.tokens]
            yield from self._end_all(FinishReason.FAILED)
            raise
        yield from self._end_all(FinishReason.CANCELLED)

    def _prefill(self) -> Generator[Event, None, mx.array | None]:
        """Append the prompts; returns logits [B, vocabulary] of the last tokens."""
        began = time.perf_counter()
        total = max(len(row.prompt) for row in self._rows)
        ids = mx.array([[0] * (total - len(row.prompt)) + list(row.prompt) for row in self._rows])
        first = self._caches[0]
        start = reused = 0 if isinstance(first, RowsKVCache) else first.offset
        while not self._cancel.is_set():
            stop = min(start + self._prefill_step, total)
            try:
                hidden = self._model.hidden(ids[:, start:stop], self._caches, self._cancel.is_set)
            except StepStoppedError:
                return None
            logits = self._model.logits(hidden[:, -1]) if stop == total else None
            mx.eval([cache.pending() for cache in self._caches], [] if logits is None else logits)
            seconds = time.perf_counter() - began
            mx.clear_cache()  # freed buffers, which MLX keeps for reuse without bound
            yield PrefillProgress(done=stop, total=total, reused=reused, seconds=seconds)
            if logits is not None:
                return logits
            start = stop
        return None

    def _decode(self, logits: mx.array) -> Iterator[Event]:
        tokens, peaks = self._draw(logits)  # [B] each
        tokens = self._said(tokens)
        for step in count(1):
            if self._cancel.is_set():
                return
            # Queued before this token is waited for: a GPU goes from one to the next.
            ahead = self._advance(tokens) if self._pipelined and not self._draft() else None
            require_finite(np.asarray(peaks))
            yield from self._collect(tokens)
            live = [at for at, row in enumerate(self._rows) if not row.transcript.finish_reason]
            if len(live) < len(self._rows):
                self._keep(live)
                kept = mx.array(live, mx.int32)
                tokens = tokens[kept]
                ahead = None if ahead is None else (ahead[0][kept], ahead[1][kept])
            if not live:
                return
            if ahead is None and (draft := self._draft()):
                tokens, peaks = yield from self._tried(tokens, draft)
                if not self._rows:
                    return
            else:
                if self._lookup is not None and self._pipelined and ahead is None:
                    self._lookup.costs.waited()
                tokens, peaks = self._advance(tokens) if ahead is None else ahead
                tokens = self._said(tokens)
            if step % _RELEASE_TOKENS == 0:
                mx.clear_cache()

    def _advance(self, tokens: mx.array) -> tuple[mx.array, mx.array]:
        """Append one token per row; what `_draw` gives of the next."""
        return self._draw(self._through(tokens[:, None])[:, -1])

    def _through(self, ids: mx.array) -> mx.array:
        """Append ids [B, L]; logits [B, L, vocabulary]."""
        if self._lookup is None or not self._lookup.costs.measures:
            return self._model(ids, self._caches)
        began = time.perf_counter()
        logits = self._model(ids, self._caches)
        mx.eval(logits)
        self._lookup.costs.took(ids.shape[1], time.perf_counter() - began)
        return logits

    def _draft(self) -> list[int]:
        """Tokens that may follow the newest one, if they are worth a pass.

        As many as stay in the hot ring with it, so that they can be taken back.
        """
        if self._lookup is None or not self._lookup.has_found:
            return []
        room = min(cache.room for cache in self._caches if isinstance(cache, TwoTierKVCache))
        return self._lookup.draft(min(room, self._rows[0].transcript.left) - 1)

    def _tried(
        self, tokens: mx.array, draft: list[int]
    ) -> Generator[Event, None, tuple[mx.array, mx.array]]:
        """Append the one row's token and a draft; say what of it would have been said.

        Returns the token after that, said, and its largest logit, as `_draw` does; no rows are
        left where one of the draft ended the answer.
        """
        assert self._lookup is not None
        transcript, before = self._rows[0].transcript, self._caches[0].offset
        drafted, stay = len(draft), 1
        try:
            logits = self._through(mx.array([[_id(tokens), *draft]]))[0]
        except CacheError:
            # A layer refused a token, perhaps one that is not said.
            self._take_back_to(before)
            tokens, peaks = self._advance(tokens)
            return self._said(tokens), peaks
        transcript.drafted += drafted
        try:
            while True:
                tokens, peaks = self._draw(logits[stay - 1 : stay])
                tokens = self._said(tokens)
                differs = stay > drafted or _id(tokens) != draft[stay - 1]
                if differs or self._cancel.is_set():
                    return tokens, peaks
                require_finite(np.asarray(peaks))
                transcript.accepted += 1
                yield from self._collect(tokens)
                if transcript.finish_reason:
                    self._rows = []
                    return tokens, peaks
                stay += 1
        finally:
            # Also where nobody asks for more.
            self._lookup.costs.settle(drafted + 1, stay)
            self._take_back_to(before + stay)

    def _take_back_to(self, offset: int) -> None:
        for cache in self._caches:
            assert isinstance(cache, TwoTierKVCache)
            cache.rewind(cache.offset - offset)

    def _draw(self, logits: mx.array) -> tuple[mx.array, mx.array]:
        """The next token of each row [B], and its largest logit [B]; queued, not waited for."""
        # numpy finds the largest of a row on the CPU in a microsecond, MLX in twenty.
        peaks = logits.max(-1) if self._pipelined else mx.array(np.asarray(logits).max(-1))
        tokens = self._sampler(logits)
        mx.async_eval(tokens, peaks)
        return tokens, peaks

    def _said(self, drawn: mx.array) -> mx.array:
        """The next token of each row [B]: the drawn one, or what the row must say."""
        forced = [row.transcript.forced for row in self._rows]
        if not any(forced):
            return drawn
        said = [ids.popleft() if ids else None for ids in forced]
        pairs = zip(said, np.asarray(drawn).tolist(), strict=True)
        tokens = mx.array([own if id_ is None else id_ for id_, own in pairs], drawn.dtype)
        self._sampler.correct(tokens)
        return tokens

    def _collect(self, tokens: mx.array) -> Iterator[Event]:
        for row, token in zip(self._rows, np.asarray(tokens), strict=True):
            was_thinking = row.transcript.is_thinking
            text = row.transcript.add(int(token))
            if self._lookup is not None:
                self._lookup.add(int(token))
            yield from self._chunks(row, text, was_thinking)
            if row.transcript.finish_reason:
                yield Finished(row=row.index, completion=row.transcript.completion())

    def _keep(self, live: list[int]) -> None:
        """Drop ended rows from the batch."""
        self._rows = [self._rows[at] for at in live]
        if not live:
            return
        self._sampler.filter(live)
        for cache in self._caches:
            if isinstance(cache, RowsKVCache):
                cache.filter(live)

    def _end_all(self, reason: FinishReason) -> Iterator[Event]:
        for row in self._rows:
            text = row.transcript.end(reason)
            if text or row.transcript.thought:
                yield from self._chunks(row, text, not text)
            yield Finished(row=row.index, completion=row.transcript.completion())
        self._rows = []

    @staticmethod
    def _chunks(row: Row, text: str, was_thinking: bool) -> Iterator[Event]:
        """What one more token added to thinking, to the answer, or to both."""
        said = row.transcript
        count, at = len(said.tokens), said.last_at
        if was_thinking or said.is_thinking or said.thought:
            yield ThinkingChunk(
                row=row.index,
                text=said.thought,
                tokens=count,
                thinking_tokens=said.thinking_tokens,
                seconds=said.thinking_s,
                at=at,
                drafts=said.drafts,
            )
            if not text:
                return
        yield TextChunk(row=row.index, text=text, tokens=count, at=at, drafts=said.drafts)


def _id(tokens: mx.array) -> int:
    """The token of the only row."""
    return int(np.asarray(tokens)[0])
