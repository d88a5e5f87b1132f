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


def test_a_dropped_job_ends_with_the_item_that_it_is_at() -> None:
    job: Job[int] = Job()
    ended: list[int] = []

    def items() -> Iterator[int]:
        try:
            yield 2
            job.drop()
            yield 3
            yield 5
        finally:
            ended.append(threading.get_ident())

    job.run(items)
    assert job.poll() == [2, 3]
    assert job.ended
    assert ended == [threading.get_ident()]


def test_whoever_stops_iterating_drops_the_job() -> None:
    job: Job[int] = Job()
    taken = iter(job)
    job.put(2)
    assert next(taken) == 2
    taken.close()
    job.run(lambda: iter([3, 5, 7]))
    assert job.poll() == [3]
