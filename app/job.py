"""What a piece of work on another thread gives, item by item.

Knows nothing of the thread or of what the items are.
"""

from collections.abc import Callable, Generator, Iterator
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")


class _Ended:
    """Put after the last item; carries what the work raised."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Job(Generic[T]):
    """The output of one piece of work: filled by one thread, taken by another.

    Taken either by iterating, which waits and raises what the work raised, or
    by `poll`, which does neither. Whoever stops iterating drops the job.
    """

    def __init__(self) -> None:
        self._out: SimpleQueue[T | _Ended] = SimpleQueue()
        self._end: _Ended | None = None
        self._dropped = False

    # -- the working side --

    def run(self, items: Callable[[], Iterator[T]]) -> None:
        """Take the items of `items()` until the job is dropped, and whatever ends them."""
        error: BaseException | None = None
        try:
            for item in items():
                self.put(item)
                if self._dropped:
                    break
        # Handed to the taking thread, whatever it is.
        except BaseException as raised:  # noqa: BLE001
            error = raised
        self.finish(error)

    def put(self, item: T) -> None:
        """Add an item."""
        self._out.put(item)

    def finish(self, error: BaseException | None = None) -> None:
        """Say that no item follows."""
        self._out.put(_Ended(error))

    # -- the taking side --

    def drop(self) -> None:
        """Say that no item is wanted any more: the work ends with the one it is at."""
        self._dropped = True

    @property
    def ended(self) -> bool:
        """Whether the last item has been taken."""
        return self._end is not None

    @property
    def error(self) -> BaseException | None:
        """What the work raised; known once `ended`."""
        return None if self._end is None else self._end.error

    def poll(self) -> list[T]:
        """The items that have come since, without waiting."""
        items: list[T] = []
        while self._end is None:
            try:
                item = self._out.get_nowait()
            except Empty:
                break
            if isinstance(item, _Ended):
                self._end = item
            else:
                items.append(item)
        return items

    def __iter__(self) -> Generator[T, None, None]:
        try:
            while self._end is None:
                item = self._out.get()
                if isinstance(item, _Ended):
                    self._end = item
                else:
                    yield item
        finally:
            self.drop()
        if self._end.error is not None:
            raise self._end.error
