"""mlx-lm's batch, in which nothing is computed that nobody reads.

mlx-lm computes logits of all tokens of a prompt, log-probabilities of every token for every row,
and the first token of a row by itself. Here prompts, one at a time, have no logits,
log-probabilities wait until a row asks, and a row begins in the step of all others. Short prompts
are read one after the other between two steps, so that more rows share the next. What is kept of
rows, and in which order they come and go, is mlx-lm's.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import mlx.core as mx
import numpy as np
from mlx_lm.generate import (
    BatchGenerator,
    GenerationBatch,
    PromptProcessingBatch,
    StopSequences,
)

from kvcache.stats import CacheStats, sum_layers
from models.network.llama import Model

_Read: TypeAlias = PromptProcessingBatch.Response
_Told: TypeAlias = GenerationBatch.Response
# Often enough for flat memory, rarely enough to cost nothing.
_RELEASE_STEPS = 512


class Batch(BatchGenerator):
    """places: sequences at once. prefill_step: tokens of prompts that are read between steps."""

    # Of the prompt that is read: its segments to come, tokens read, and all of them.
    _currently_processing: list[list[Any]]

    def __init__(self, model: Model, *, places: int, prefill_step: int) -> None:
        super().__init__(
            model,
            completion_batch_size=places,
            prefill_batch_size=1,
            prefill_step_size=prefill_step,
            stream=mx.default_stream(mx.default_device()),
        )
        self._prompt_batch = _Prompts.empty(model, self.sampler, prefill_step)
        self._generation_batch = _Answers.empty(model, self.sampler)
        self._steps = 0
        self.agree_by(lambda drawn: drawn)

    def agree_by(self, agreed: Callable[[mx.array], mx.array]) -> None:
        """Ask this what is taken of the tokens that a step draws, one for each row."""
        self._generation_batch.agreed = agreed

    def held(self) -> list[CacheStats]:
        """Of prompts that are read, and of answers: all sequences together."""
        batches = self._prompt_batch.prompt_cache, self._generation_batch.prompt_cache
        return [sum_layers(layer.stats() for layer in each) for each in batches if each]

    def _next(self) -> tuple[list[_Read], list[_Told]]:
        """A token of every answer, then as many of prompts as are read between two steps."""
        told = self._generation_batch.next()
        self._steps += 1
        if self._steps % _RELEASE_STEPS == 0:
            mx.clear_cache()
        read, left = list[_Read](), self.prefill_step_size
        while self._has_prompt():
            ((segments, done, total),) = self._currently_processing
            # Always the same pieces of a prompt, whatever is read before it.
            piece = segments[0][: self.prefill_step_size]
            if sum(map(len, segments)) == 1:
                read.append(self._join(total))
            elif len(piece) <= left:
                left -= len(piece)
                read.append(self._read(piece, done, total))
            else:
                break
        return read, told

    def _has_prompt(self) -> bool:
        """Whether there is one to read; the next is begun where it would have a place."""
        is_free = len(self._generation_batch) < self.completion_batch_size
        if not len(self._prompt_batch) and self._unprocessed_sequences and is_free:
            self._prompt_batch.extend(self._make_batch(1))
        return len(self._prompt_batch) > 0

    def _read(self, piece: list[int], done: int, total: int) -> _Read:
        """Read a piece of the prompt's next segment."""
        (uid,), ((segments, _, _),) = self._prompt_batch.uids, self._currently_processing
        self._prompt_batch.prompt([piece])
        rest = segments[0][len(piece) :]
        segments[:1] = [rest] if rest else []
        done += len(piece)
        self._currently_processing = [[segments, done, total]]
        return _Read(uid, (done, total), not rest, False)

    def _join(self, total: int) -> _Read:
        """Answer the prompt, which is read but for its last token, beside all others."""
        (uid,), ((segments, _, _),) = self._prompt_batch.uids, self._currently_processing
        self._generation_batch.extend(self._prompt_batch.generate(segments))
        self._currently_processing = []
        return _Read(uid, (total, total), True, True)


class _Answers(GenerationBatch):
    """The rows that are answered, a token of each in a step."""

    agreed: Callable[[mx.array], mx.array]
    _next_tokens: mx.array
    _next_logprobs: list[mx.array]

    def next(self) -> list[_Told]:
        """The next token of every row but those that have just joined."""
        pairs = zip(self.uids, self._num_tokens, strict=True)
        joined = {uid for uid, tokens in pairs if tokens < 0}
        responses: list[_Told] = super().next()
        if not joined:
            return responses
        for at, uid in enumerate(self.uids):
            if uid in joined:
                self._matchers[at] = self.stop_sequences[at].matcher()
        return [each for each in responses if each.uid not in joined]

    def _step(self) -> tuple[list[int], list[mx.array]]:
        """Compute the next tokens; returns those before them, and their log-probabilities."""
        inputs = self._current_tokens = self._next_tokens
        self._current_logprobs = self._next_logprobs
        logits = self.model(inputs[:, None], cache=self.prompt_cache)[:, -1]
        logits, contexts = self._processed(logits, inputs)
        self._next_tokens = self.agreed(self._drawn(logits))
        # Not computed before a row asks for its own.
        self._next_logprobs = list(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
        mx.async_eval(self._next_tokens, contexts)
        tokens: list[int] = np.asarray(inputs).tolist()
        for held, token in zip(self.tokens, tokens, strict=True):
            held.append(token)
        return tokens, self._current_logprobs

    def _processed(self, logits: mx.array, inputs: mx.array) -> tuple[mx.array, list[mx.array]]:
        """Logits by what rows have of penalties and biases, and what those remember of tokens."""
        if not any(self.logits_processors):
            return logits, []
        rows, contexts = list[mx.array](), list[mx.array]()
        for at, processors in enumerate(self.logits_processors):
            row = logits[at : at + 1]
            if processors:
                contexts.append(self._token_context[at].update_and_fetch(inputs[at : at + 1]))
            for process in processors or ():
                row = process(contexts[-1], row)
            rows.append(row)
        return mx.concatenate(rows), contexts

    def _drawn(self, logits: mx.array) -> mx.array:
        """The next token of each row; asked once where all rows draw alike."""
        first = self.samplers[0]
        if all(draw is first for draw in self.samplers):
            drawn: mx.array = first(logits)
            return drawn
        return mx.concatenate([draw(logits[at : at + 1]) for at, draw in enumerate(self.samplers)])


class _Joining(GenerationBatch):
    """Rows that begin with the last tokens of their prompts, which are not told as answers are.

    They begin in the step of all rows that they join; mlx-lm gives each one of its own.
    """

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._num_tokens = [-1] * len(self)
        self._matchers = [StopSequences().matcher() for _ in self.uids]
        self._next_logprobs = [mx.array(0.0)] * len(self)

    def _step(self) -> tuple[list[int], list[mx.array]]:
        return [], []


class _Prompts(PromptProcessingBatch):
    """The one prompt that is read, if any."""

    def prompt(self, tokens: list[list[int]]) -> None:
        """Read these of its tokens."""
        (news,) = tokens
        self.tokens[0] += news
        self.model.hidden(mx.array([news]), self.prompt_cache)
        mx.eval([cache.state for cache in self.prompt_cache])
        mx.clear_cache()

    def generate(self, tokens: list[list[int]]) -> _Joining:
        """Its answer, from its last token on."""
        answer = _Joining(
            self.model,
            self.uids,
            mx.array([ids[-1] for ids in tokens], mx.uint32),
            self.prompt_cache,
            self.tokens,
            self.samplers,
            self.fallback_sampler,
            self.logits_processors,
            self.stop_sequences,
            self.max_tokens,
        )
        # Nothing is left to read.
        none = self.empty(self.model, self.fallback_sampler, self.prefill_step_size)
        self.__dict__.update(vars(none))
        return answer
