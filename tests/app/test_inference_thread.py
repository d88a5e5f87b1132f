import threading
from collections.abc import Iterator
from itertools import count

import mlx.core as mx
import pytest

from app.inference_thread import InferenceThread
from app.job import Job


def test_all_jobs_run_on_one_other_thread() -> None:
    with InferenceThread() as thread:
        names = [thread.call(lambda: threading.current_thread().name) for _ in range(3)]
        idents = {thread.call(threading.get_ident) for _ in range(3)}
    assert names == ["inference"] * 3
    assert len(idents) == 1
    assert threading.get_ident() not in idents


def test_an_unevaluated_array_lives_between_jobs() -> None:
    with InferenceThread() as thread:
        lazy = thread.call(lambda: mx.arange(7) * 3)
        assert thread.call(lambda: lazy.sum().item()) == 63


def test_items_arrive_while_the_job_still_runs() -> None:
    gate = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        gate.wait()
        yield 2

    with InferenceThread() as thread:
        stream = thread.stream(items)
        assert next(stream) == 1
        gate.set()
        assert list(stream) == [2]


def test_errors_are_raised_where_they_are_awaited() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("gone")

    with InferenceThread() as thread:
        stream = thread.stream(items)
        assert next(stream) == 1
        with pytest.raises(KeyError, match="gone"):
            next(stream)
        assert thread.call(lambda: 5) == 5


def test_leaving_ends_the_thread() -> None:
    before = threading.active_count()
    with InferenceThread():
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def _endless(ended: threading.Event) -> Iterator[int]:
    try:
        yield from count()
    finally:
        ended.set()


def test_a_closed_stream_ends_its_job() -> None:
    ended = threading.Event()
    with InferenceThread() as thread:
        stream = thread.stream(lambda: _endless(ended))
        assert next(stream) == 0
        stream.close()
        assert ended.wait(60)
        assert thread.call(lambda: 5) == 5


def test_an_error_of_the_caller_does_not_wait_for_what_runs() -> None:
    ended = threading.Event()
    job: Job[int] = Job()

    def fails_meanwhile() -> None:
        with InferenceThread() as thread:
            thread.submit(lambda: _endless(ended), job)
            while not job.poll():
                pass
            raise KeyError("not caught inside")

    with pytest.raises(KeyError):
        fails_meanwhile()
    assert ended.is_set()
