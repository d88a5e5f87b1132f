"""When Python looks for garbage in cycles.

A full look walks every object, and a key that is pressed meanwhile waits for it:
70 ms in a long chat. So it waits until nothing runs. What is dropped without
cycles, models and caches among it, goes at once as ever.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_YOUNG, _MIDDLE, _NEVER = 2_000, 10, 1 << 30


@contextmanager
def collected_at_rest() -> Iterator[None]:
    """Within this, full looks are left to `rest`, and spare what there was before."""
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(_YOUNG, _MIDDLE, _NEVER)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def rest() -> None:
    """Nothing runs now: take the look, if it was left to this call."""
    if gc.get_threshold()[2] == _NEVER:
        gc.collect()
