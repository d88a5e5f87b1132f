import threading
from collections.abc import Iterator

import pytest

from app.job import Job


def test_poll_never_waits() -> None:
    job: Job[int] = Job()
    assert job.poll() == []
    job.put(3)
    job.put(5)
    assert job.poll() == [3, 5]
    ended = [job.ended]
    job.finish()
    assert job.poll() == []
    assert [*ended, job.ended] == [False, True]
    assert job.error is None


def test_poll_tells_an_error_and_does_not_raise_it() -> None:
    def items() -> Iterator[int]:
        yield 7
        raise KeyError("gone")

    job: Job[int] = Job()
    job.run(items)
    assert job.poll() == [7]
    assert job.ended
    assert isinstance(job.error, KeyError)


def test_iterating_waits_and_raises() -> None:
    job: Job[int] = Job()

    def work() -> None:
        job.put(2)
        job.finish(ValueError("no"))

    threading.Timer(0.05, work).start()
    taken: list[int] = []
    with pytest.raises(ValueError, match="no"):
        taken.extend(job)
    assert taken == [2]
    assert job.ended
