"""Rows of a server on all ranks: which come and go is rank 0's word, and which tokens are drawn.

All else follows from that, and is the same on every rank: what is kept of prompts, and with how
much of one a row begins.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import replace

import mlx.core as mx
from mlx_lm.tokenizer_utils import TokenizerWrapper

from app.engine import Engine
from app.ranks.calls import Asked, Open, Step
from app.ranks.company import Company
from app.ranks.meeting import first_word
from app.serve.batch import Batch
from app.serve.budget import Budget
from app.serve.row import Prepared, Row
from app.serve.running import Running
from app.wake.waking import Waking
from kvcache import EmberError


class RankRunning(Running):
    """What fails within a step has failed while others wait: then nothing more can be computed."""

    def __init__(
        self, company: Company, engine: Engine, budget: Budget, tokenizer: TokenizerWrapper
    ) -> None:
        self._company, self._tokenizer = company, tokenizer
        company.tell(Open(total=budget.total))
        super().__init__(engine, budget, tokenizer)

    def advance(self, left: Sequence[int], begun: Sequence[Row]) -> None:
        asked = [Asked(request=_bare(row.request), args=row.args) for row in begun]
        self._company.tell(Step(left=left, begun=asked, kept=len(self.kept)))
        with self._company.meeting():
            super().advance(left, begun)

    def follow(self, step: Step) -> None:
        """Do as rank 0 does; what rows say is for nobody. Raises EmberError if it cannot be."""
        if len(self.kept) != step.kept:
            raise EmberError(
                f"keeps {len(self.kept)} prompts where rank 0 keeps {step.kept}: "
                "start all ranks with the same backend"
            )
        silent = [replace(each.args, logprobs=False) for each in step.begun]
        rows = zip(step.begun, silent, strict=True)
        self.advance(step.left, [Row(each.request, args, self._tokenizer) for each, args in rows])

    def close(self) -> None:
        mx.synchronize()  # what is queued waits for other ranks, which end once rank 0 has
        super().close()

    def _empty_batch(self) -> Batch:
        batch = super()._empty_batch()
        batch.agree_by(lambda drawn: first_word(drawn, self._company.group))
        return batch

    def _fail_all(self, error: Exception) -> None:
        for row in self._rows.values():
            row.fail(error)
        if isinstance(error, RuntimeError):  # as MLX tells of a rank that has ended
            raise error
        raise EmberError(f"an answer has failed, and the ranks wait for each other: {error}")


def make_running(
    company: Company | None,
    engine: Engine,
    budget: Budget,
    tokenizer: TokenizerWrapper,
    waking: Waking | None,
) -> Running:
    """Rows that are computed together; on every rank of a company."""
    if company is None:
        return Running(engine, budget, tokenizer, waking)
    return RankRunning(company, engine, budget, tokenizer)


def _bare(request: Prepared) -> Prepared:
    """What other ranks need of it."""
    made = copy(request)
    made.prompt, made.messages, made.tools = "", [], None
    made.is_gone, made.unsent = _waits, []
    return made


def _waits() -> bool:
    return False
