"""The clock of every engine: the same steps in the same order, whoever computes."""

import time
from collections.abc import Callable

from app.bench.engines.case import Case

Read = Callable[[int, int], None]
Advance = Callable[[], None]


def time_case(case: Case, read: Read, advance: Advance) -> tuple[float, tuple[float, ...]]:
    """Fill the cache to the case's depth, then time its prompt and each generated token.

    read(start, count): compute that many prompt tokens from position `start` on.
    advance(): pick the next token and compute it. Both return when done.
    Returns the seconds of the prompt and of each token.
    """
    if case.depth:
        read(0, case.depth)
    return time_steps(case, read, advance)


def time_steps(case: Case, read: Read, advance: Advance) -> tuple[float, tuple[float, ...]]:
    """The same over a cache that holds the case's depth."""
    pp_s = _seconds(lambda: read(case.depth, case.pp))
    return pp_s, tuple(_seconds(advance) for _ in range(case.tg))


def _seconds(step: Callable[[], None]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began
