"""What every rank but the first does: as it is asked, without a word unless it fails."""

import sys
from functools import partial

from app.engine import PromptTooLongError
from app.inert import inert_line
from app.inference_thread import InferenceThread
from app.ranks.calls import Adapt, Forget, Generate, Keep, Load, Make
from app.ranks.company import Company, OtherRankError
from app.ranks.rank_engine import RankEngine
from app.session import load_admitted
from kvcache import EmberError
from models.finding.store import models_folder
from models.loader import LoadedModel


def follow(company: Company) -> None:
    """Do as rank 0 asks, without end: with it the process ends."""
    follower = _Follower(company)
    with InferenceThread() as thread:
        for call in company.asked():
            thread.call(partial(follower.do, call))


class _Follower:
    """Holds what rank 0 holds: a model, and an engine over it."""

    def __init__(self, company: Company) -> None:
        self._company = company
        self._loaded: LoadedModel | None = None
        self._engine: RankEngine | None = None

    def do(self, call: object) -> None:
        """Raises EmberError for what leaves the ranks apart."""
        match call:
            case Generate():
                self._generate(call)
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
        loaded, _ = load_admitted(path, call.config, call.options, company=self._company)
        return loaded

    def _made(self) -> RankEngine:
        assert self._engine is not None
        return self._engine

    def _say(self, error: EmberError) -> None:
        print(f"ember: rank {self._company.rank}: error: {inert_line(error)}", file=sys.stderr)
