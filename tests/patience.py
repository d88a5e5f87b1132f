"""How long a test waits, and how it times work, on a machine that others may be using.

A wait ends when what it waits for has come, so a long limit costs nothing but in a
failing test. Work is timed by the processor's time of this process, in which what
others do hardly counts.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def patience(seconds: float) -> float:
    """How long to wait for what takes at most so many seconds on a quiet machine.

    Longer by as many processes as want each core, and twice as much for those that come
    while we wait.
    """
    return seconds * (3 + os.getloadavg()[0] / (os.cpu_count() or 1))


def wait_until(holds: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for what comes soon."""
    until = time.monotonic() + patience(seconds)
    while not holds():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.01)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """The block may use so much processor time, all threads together."""
    began = time.process_time()
    yield
    taken = time.process_time() - began
    assert taken < seconds, f"took {taken:.2f} s of processor time, expected under {seconds:g} s"
