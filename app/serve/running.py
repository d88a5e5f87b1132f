"""The rows that are computed together: mlx-lm's batch, in the bytes of a budget.

Lives on the thread that computes. A request waits until there is a place; what is kept of
earlier prompts gives way to running ones. Knows no connection.
"""

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlx_lm import server
from mlx_lm.generate import StopSequences
from mlx_lm.tokenizer_utils import TokenizerWrapper

from app.engine import Engine
from app.serve.batch import Batch
from app.serve.budget import Budget
from app.serve.kept_prompts import KeptPrompts
from app.serve.model_provider import DEFAULT
from app.serve.row import Row, sampler
from app.serve.server_figures import Counts, Figures, by_tier
from app.wake.waking import Waking

_LOOK_SECONDS = 0.5
# For the disk, at the end.
_REST_SECONDS = 1.5
# Tokens that a sequence may grow by before room is made for it again, and steps until then.
_AHEAD = 512
_STEPS = 64


class Running:
    """Rows by their number in the batch, and those that wait.

    waking: what keeps prompts on disk; None for no disk. figures: the newest look at all of it,
    for any thread.
    """

    def __init__(
        self,
        engine: Engine,
        budget: Budget,
        tokenizer: TokenizerWrapper,
        waking: Waking | None = None,
    ) -> None:
        self._engine, self._budget, self._vocabulary = engine, budget, len(tokenizer)
        self._batch = self._empty_batch()
        self._ends = StopSequences([(each,) for each in tokenizer.eos_token_ids])
        self._rows: dict[int, Row] = {}
        self._waiting: deque[Row] = deque()
        self.kept = KeptPrompts(engine, budget.total, waking)
        self._counts, self._looked, self._steps = Counts(), 0.0, 0
        self.figures = self._look()

    def __len__(self) -> int:
        return len(self._rows) + len(self._waiting)

    def take(self, row: Row) -> None:
        """Another request, behind all that wait."""
        self._waiting.append(row)

    def step(self) -> None:
        """One token of every row whose prompt is read, and a piece of one that is not.

        Those that nobody waits for leave before it, and as many as have a place then begin.
        """
        self._waiting = deque(row for row in self._waiting if not row.has_left)
        left = [uid for uid, row in self._rows.items() if row.has_left]
        places = self._budget.sequences - len(self._rows) + len(left)
        begun = [self._waiting.popleft() for _ in range(min(places, len(self._waiting)))]
        self.advance(left, begun)
        self.look()

    def advance(self, left: Sequence[int], begun: Sequence[Row]) -> None:
        """A step, before which rows of these numbers leave, and these others begin."""
        if left:
            self._batch.remove(left)
        for uid in left:
            del self._rows[uid]
        for row in begun:
            self._begin(row)
        self._steps += 1
        if self._steps % _STEPS == 0:
            self._make_room()
        try:
            read, drawn = self._batch.next()
        except Exception as error:  # noqa: BLE001 - of one row; none of the others is whole then
            self._fail_all(error)
            return
        for response in read:
            self._rows[response.uid].read(*response.progress)
        self._keep_segments([each for each in read if each.end_of_segment])
        for response in drawn:
            self._add(response)

    def cut_all(self) -> None:
        """End every answer here; who has none yet is told so by the generator."""
        for row in self._rows.values():
            row.cut()
        self._batch.remove(list(self._rows))
        self._rows.clear()

    def take_waiting(self) -> Iterator[Row]:
        """Those that wait, which are forgotten."""
        while self._waiting:
            yield self._waiting.popleft()

    def close(self) -> None:
        """Let go of the batch, and keep on disk what a next run may begin with."""
        self._batch.close()
        self.kept.rest(_REST_SECONDS)

    def look(self) -> None:
        """Note the figures, unless that was done a moment ago."""
        if time.monotonic() - self._looked >= _LOOK_SECONDS:
            self.figures = self._look()

    def _empty_batch(self) -> Batch:
        return Batch(
            self._engine.loaded.model,
            places=self._budget.sequences,
            prefill_step=self._engine.prefill_step(),
        )

    def _fail_all(self, error: Exception) -> None:
        """Tell all that are computed that they cannot be, and begin anew."""
        for row in self._rows.values():
            row.fail(error)
        self._rows.clear()
        self._batch.close()
        self._batch = self._empty_batch()

    def _begin(self, row: Row) -> None:
        """Give a request its place, from the longest beginning that is kept."""
        tokens = row.request.tokens
        kept, known = self.kept.beginning(tokens)
        row.begin(known)
        (uid,) = self._batch.insert_segments(
            segments=[_after(row)],
            max_tokens=[row.args.max_tokens],
            caches=[kept or self._engine.empty_caches()],
            all_tokens=[tokens[: row.cached]],
            samplers=[sampler(row.request.sampling, self._vocabulary)],
            logits_processors=[server._make_logits_processors(row.args)],
            stop_sequences=[self._ends],
        )
        self._rows[uid] = row
        self._counts.begin(len(tokens), row.cached)
        self._make_room()

    def _add(self, response: Any) -> None:
        row = self._rows[response.uid]
        self._counts.answer_tokens += 1
        if not row.add(response.token, response.logprobs, response.finish_reason):
            return
        del self._rows[response.uid]
        if response.finish_reason is not None:
            self._keep(response.all_tokens, response.prompt_cache, "assistant")
            return
        # By a stop string, of which the batch knows nothing.
        caches = self._batch.remove([response.uid], return_prompt_caches=True)
        for cache, tokens in caches.values():
            self._keep(tokens, cache, "assistant")

    def _keep_segments(self, ended: list[Any]) -> None:
        """Keep what the next requests may begin with: a system prompt, a conversation so far."""
        kinds = {
            each.uid: self._rows[each.uid].kinds.pop(0)
            for each in ended
            if not each.end_of_prompt and self._rows[each.uid].kinds
        }
        found: Mapping[int, Any] = self._batch.extract_cache(list(kinds))
        for uid, (cache, tokens) in found.items():
            self._keep(tokens, cache, kinds[uid])

    def _keep(self, tokens: list[int], cache: list[Any], kind: str) -> None:
        self.kept.insert_cache(DEFAULT, list(tokens), cache, cache_type=kind)
        self._make_room()

    def _make_room(self) -> None:
        """What is kept takes no more than running sequences leave of the budget."""
        taken = sum(self._budget.bytes_of(row.held + _AHEAD) for row in self._rows.values())
        self.kept.trim_to(n_bytes=self._budget.total - taken)

    def _look(self) -> Figures:
        self._looked = time.monotonic()
        rows = self._batch.held()
        return Figures(
            model=self._engine.loaded.title,
            window=self._budget.plan.max_tokens,
            places=self._budget.sequences,
            running=len(self._rows),
            waiting=len(self._waiting),
            tokens=by_tier(rows),
            budget_bytes=self._budget.total,
            running_bytes=sum(each.held_bytes for each in rows),
            kept_bytes=self.kept.nbytes,
            kept=len(self.kept),
            requests=self._counts.requests,
            hits=self._counts.hits,
            cached_tokens=self._counts.cached_tokens,
            prompt_tokens=self._counts.prompt_tokens,
            answer_tokens=self._counts.answer_tokens,
            tokens_per_second=self._counts.tokens_per_second,
        )


def _after(row: Row) -> list[list[int]]:
    """The segments of a prompt after what is kept of it; `row.kinds` are theirs."""
    segments, done = [], row.cached
    for segment in row.request.segments:
        if done >= len(segment):
            done -= len(segment)
            row.kinds.pop(0)
            continue
        segments.append(segment[done:])
        done = 0
    return segments
