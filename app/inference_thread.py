"""The one thread that owns MLX.

An MLX array belongs to the thread that made it, so loading, prefill and decode
all run here; other threads hand in functions and take plain results out.
"""

import threading
from collections.abc import Callable, Generator, Iterator
from queue import SimpleQueue
from typing import Any, Self, TypeVar

import mlx.core as mx

from app.job import Job

T = TypeVar("T")
# A job that hears of its cancel ends within this; one that does not is left to itself.
LEAVE_SECONDS = 2.0


class InferenceThread:
    """Runs jobs one after another on a single permanent thread.

    A context manager: leaving it waits for the running job and ends the thread. By an
    exception that job is dropped and the thread soon left, as nobody takes what it gives.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[tuple[Callable[[], Iterator[Any]], Job[Any]] | None] = SimpleQueue()
        self._running: Job[Any] | None = None
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and (job := self._running) is not None:
            job.drop()
        self.close(None if kind is None else LEAVE_SECONDS)

    def close(self, patience: float | None = None) -> None:
        """End the thread once its jobs are done; wait no longer than so many seconds for it."""
        self._jobs.put(None)
        self._thread.join(patience)

    def call(self, function: Callable[[], T]) -> T:
        """Run `function` there; returns its result or raises what it raised."""

        def once() -> Iterator[T]:
            yield function()

        (result,) = self.stream(once)
        return result

    def stream(self, items: Callable[[], Iterator[T]]) -> Generator[T, None, None]:
        """Iterate there over what `items` returns, and here over its items as they come.

        Closing the iterator ends the job with the item that it is at.
        """
        return self.submit(items).__iter__()

    def submit(self, items: Callable[[], Iterator[T]], job: Job[T] | None = None) -> Job[T]:
        """As `stream`, for a caller who must not wait: see `Job.poll`.

        job: where the items go; one that `items` itself may put to, if given.
        """
        job = job or Job()
        self._jobs.put((items, job))
        return job

    @property
    def is_wanted(self) -> bool:
        """Whether a job waits for the one that runs."""
        return not self._jobs.empty()

    def _run(self) -> None:
        while task := self._jobs.get():
            items, self._running = task
            self._running.run(items)
            self._running = None
            del task, items
        # Streams that outlive their thread abort the process at exit.
        mx.clear_streams()
