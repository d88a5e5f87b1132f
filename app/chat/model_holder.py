"""The model of the chat: loaded, loading, being fetched, or none."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from app import units
from app.chat.state import Problem
from app.job import Job
from app.pace import Pace
from app.service.contract import (
    CacheChanged,
    CacheWish,
    FetchEvent,
    LetGo,
    LoadEvent,
    ModelInfo,
    ModelService,
    Told,
)
from kvcache.errors import EmberError
from models.finding.progress import Progress


@dataclass(kw_only=True)
class Fetching:
    """A download that runs. progress: its last report."""

    spec: str
    job: Job[FetchEvent]
    progress: Progress | None = None
    stopped: bool = False
    pace: Pace = field(default_factory=Pace)

    def take(self, progress: Progress, at: float) -> None:
        """It has come so far, at a time in seconds."""
        self.progress = progress
        if progress.total_bytes:
            self.pace.note(progress.done_bytes, at)

    @property
    def in_words(self) -> str:
        """How much is here, how fast it comes and how long it will take; empty before that."""
        progress = self.progress
        if progress is None or not progress.total_bytes:
            return ""
        done, total = map(units.file_size, (progress.done_bytes, progress.total_bytes))
        left = self.pace.left(progress.total_bytes)
        if left is None:
            return f"{done} of {total}"
        speed = f"{self.pace.rate / 1e6:.1f} MB/s"
        return f"{done} of {total}, {speed}, {units.seconds(left)} left"


class ModelHolder:
    """Follows loads, changes of the cache and downloads; `tick` takes what they have given.

    problem: why the last of them failed. said: what the user should know of them, to be taken
    away by who shows it. loads: how many models have been loaded.
    """

    def __init__(self, service: ModelService) -> None:
        self.model: ModelInfo | None = None
        self.progress: Progress | None = None
        self.fetching: Fetching | None = None
        self.problem: Problem | None = None
        self.said: list[str] = []
        self.loads = 0
        self._service = service
        self._job: Job[LoadEvent] | None = None
        self._changed: Callable[[], None] | None = None
        self._is_changed = False

    @property
    def loading(self) -> bool:
        """Whether a load runs."""
        return self._job is not None

    def require_rest(self) -> None:
        """Raise EmberError while a load or a change of the cache runs."""
        if self.loading:
            what = "model is still loading" if self._changed is None else "cache is changing"
            raise EmberError(f"the {what}: Esc stops it")

    def load(self, spec: str) -> None:
        """Load a model in place of the present one, which stays until the other has loaded."""
        self.require_rest()
        self.progress = self.problem = None
        self._job, self._changed = self._service.load(spec), None

    def change_cache(self, wish: CacheWish, changed: Callable[[], None]) -> None:
        """Another cache for the model and those to come; `changed` is called once it is there.

        Not where the user stops that before.
        """
        self.progress = self.problem = None
        self._is_changed = False
        self._job, self._changed = self._service.change_cache(wish), changed

    def fetch(self, spec: str) -> None:
        """Download a model, to be loaded once nothing else runs."""
        if self.fetching is not None:
            raise EmberError(f"{self.fetching.spec} is being fetched: wait for it, or stop it")
        self.problem = None
        self.fetching = Fetching(spec=spec, job=self._service.fetch(spec))

    def stop_fetch(self) -> None:
        """Stop the download."""
        if self.fetching is not None:
            self.fetching.stopped = True
            self._service.cancel_fetch()

    def tick(self, *, may_load: bool) -> bool:
        """Take what has come; returns whether anything has.

        may_load: nothing else runs, so that a fetched model may be loaded.
        """
        changed = False
        if self.fetching is not None:
            changed |= self._take_fetch(self.fetching, may_load=may_load)
        if self._job is not None:
            changed |= self._take_load(self._job)
        return changed

    def _take_fetch(self, fetching: Fetching, *, may_load: bool) -> bool:
        items = fetching.job.poll()
        for item in items:
            match item:
                case Told():
                    self.said.append(item.text)
                case Progress():
                    fetching.take(item, time.monotonic())
        if not fetching.job.ended:
            return bool(items)
        error = fetching.job.error
        if fetching.stopped or error is not None:
            self.fetching = None
            if error is not None and not fetching.stopped:
                self.problem = Problem.of(f"{fetching.spec} was not fetched", error)
        elif may_load and not self.loading:
            self.fetching = None
            self.load(fetching.spec)
        return True

    def _take_load(self, job: Job[LoadEvent]) -> bool:
        items = job.poll()
        for item in items:
            match item:
                case ModelInfo():
                    self._take_model(item)
                case LetGo():
                    self.model = None
                case CacheChanged():
                    self._is_changed = True
                    self.said += item.said
                case Progress():
                    self.progress = item
        if not job.ended:
            return bool(items)
        self._job = self.progress = None
        changed, self._changed = self._changed, None
        if job.error is not None:
            what = (
                "the model could not be loaded" if changed is None else "the cache stays as it was"
            )
            self.problem = Problem.of(what, job.error)
        elif changed is not None and self._is_changed:
            changed()
        elif changed is not None:
            self.said.append("stopped: the cache stays as it was")
        return True

    def _take_model(self, model: ModelInfo) -> None:
        self.model = model
        if self._changed is None:
            self.loads += 1
            self.said += model.notes
