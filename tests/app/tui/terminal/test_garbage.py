import gc
import weakref

from app.tui.terminal import garbage


class Node:
    """Something that refers to itself."""

    def __init__(self) -> None:
        self.itself = self


def test_cycles_are_found_at_rest_and_all_is_as_before_in_the_end() -> None:
    thresholds = gc.get_threshold()
    with garbage.collected_at_rest():
        assert gc.get_freeze_count() > 0
        node = weakref.ref(Node())
        gc.collect(1)  # a look at the young, which may make it an old one
        garbage.rest()
        assert node() is None
    assert gc.get_threshold() == thresholds
    assert gc.get_freeze_count() == 0
