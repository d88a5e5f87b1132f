"""What every rank but the first does: as it is asked, without a word unless it fails."""

import sys
from functools import partial
from typing import TYPE_CHECKING

from app.engine import PromptTooLongError
from app.inert import inert_line
from app.inference_thread import InferenceThread
from app.ranks.calls import Adapt, Forget, Generate, Keep, Load, LoadServed, Make, Open, Step
from app.ranks.company import Company, OtherRankError
from app.ranks.rank_engine import RankEngine
from app.session import load_admitted
from kvcache import EmberError
from models.finding.store import models_folder
from models.loader import LoadedModel

if TYPE_CHECKING:  # else each rank of a chat would read mlx-lm's server
    from app.ranks.rank_running import RankRunning


def follow(company: Company) -> None:
    """Do as rank 0 asks, without end: with it the process ends."""
    follower = _Follower(company)
    with InferenceThread() as thread:
        for call in company.asked():
            thread.call(partial(follower.do, call))


class _Follower:
    """Holds what rank 0 holds: a model, an engine over it, and a server's rows."""

    def __init__(self, company: Company) -> None:
        self._company = company
        self._loaded: LoadedModel | None = None
        self._engine: RankEngine | None = None
        self._running: RankRunning | None = None

    def do(self, call: object) -> None:
        """Raises EmberError for what leaves the ranks apart."""
        match call:
            case Generate():
                self._generate(call)
            case Step():
                assert self._running is not None
                self._running.follow(call)
            case Open(total=total):
                self._running = self._opened(total)
            case Forget():
                self._made().forget()
            case _:
                try:
                    self._change(call)
                except OtherRankError:
                    pass
                except EmberError as error:
                    # Rank 0 says that it was not done, and goes on or ends.
                    self._say(error)

    def _change(self, call: object) -> None:
        match call:
            case Load():
                self._loaded = self._engine = None
                self._loaded = self._load(call)
            case Make(config=config):
                assert self._loaded is not None
                self._engine = RankEngine(self._company, self._loaded, config)
            case Adapt(config=config):
                self._made().adapt(config)
            case Keep(tokens=tokens):
                self._made().keep(tokens)

    def _generate(self, call: Generate) -> None:
        engine, (first, *_) = self._made(), call.requests
        answer = engine.generate_batch(call.requests) if call.batch else engine.generate(first)
        try:
            for _ in answer:
                pass
        except PromptTooLongError:  # which rank 0 says
            pass

    def _load(self, call: Load) -> LoadedModel:
        # Other machines may have other homes.
        path = call.path if call.path.exists() else models_folder() / call.path.name
        config, options = call.config, call.options
        if isinstance(call, LoadServed):
            from app.serve.model_provider import load_served

            served, *_ = load_served(path, config, call.total, options, company=self._company)
            return served
        loaded, _ = load_admitted(path, config, options, company=self._company)
        return loaded

    def _opened(self, total: int) -> "RankRunning":
        from app.ranks.rank_running import RankRunning
        from app.serve.budget import Budget
        from models.mlx_lm import tokenizer_of

        engine = self._made()
        budget = Budget(total=total, plan=engine.plan)
        return RankRunning(self._company, engine, budget, tokenizer_of(engine.loaded))

    def _made(self) -> RankEngine:
        assert self._engine is not None
        return self._engine

    def _say(self, error: EmberError) -> None:
        print(f"ember: rank {self._company.rank}: error: {inert_line(error)}", file=sys.stderr)
