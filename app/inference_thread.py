"""The one thread that owns MLX.

An MLX array belongs to the thread that made it, so loading, prefill and decode
all run here; other threads hand in functions and take plain results out.
"""

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any, Self, TypeVar

import mlx.core as mx

T = TypeVar("T")


class _Ended:
    """Put on a job's output after its last item; carries what it raised."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class InferenceThread:
    """Runs jobs one after another on a single permanent thread.

    A context manager: leaving it waits for the running job and ends the thread.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[tuple[Callable[[], Iterator[Any]], SimpleQueue[Any]] | None] = (
            SimpleQueue()
        )
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread once its jobs are done."""
        self._jobs.put(None)
        self._thread.join()

    def call(self, function: Callable[[], T]) -> T:
        """Run `function` there; returns its result or raises what it raised."""

        def once() -> Iterator[T]:
            yield function()

        (result,) = self.stream(once)
        return result

    def stream(self, items: Callable[[], Iterator[T]]) -> Iterator[T]:
        """Iterate there over what `items` returns, and here over its items as they come.

        The job runs to its end even if the caller stops taking items.
        """
        out: SimpleQueue[T | _Ended] = SimpleQueue()
        self._jobs.put((items, out))
        while not isinstance(item := out.get(), _Ended):
            yield item
        if item.error is not None:
            raise item.error

    def _run(self) -> None:
        while job := self._jobs.get():
            items, out = job
            error: BaseException | None = None
            try:
                for item in items():
                    out.put(item)
            # Handed to the caller's thread and raised there, whatever it is.
            except BaseException as raised:  # noqa: BLE001
                error = raised
            out.put(_Ended(error))
            del job, items, out, error
        # Streams that outlive their thread abort the process at exit.
        mx.clear_streams()
