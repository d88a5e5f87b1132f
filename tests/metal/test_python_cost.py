"""What Python does for a token and a layer on a GPU is counted, not timed: noise does not count."""

import gc
from functools import cache

import mlx.core as mx
import pytest

from kvcache.gpu import decode
from tests.metal import launches
from tests.metal.python_cost import HELD, TYPES, Counted, counted, launching_nothing

# Of 79 and 1,944, and of 88 and 2,100, with Python 3.11; other versions count somewhat differently.
MOST_CALLS, MOST_INSTRUCTIONS = 80, 2_000
MOST_SHARED_CALLS, MOST_SHARED_INSTRUCTIONS = 90, 2_200


@cache
def of(state: str) -> Counted:
    return counted(HELD[state])


@pytest.mark.parametrize("state", HELD)
def test_a_layer_takes_little_python(state: str) -> None:
    """Time goes by it: `python -m tests.metal.python_cost` says how much."""
    layer = of(state).layer
    assert 0 < layer.calls <= MOST_CALLS
    assert 0 < layer.instructions <= MOST_INSTRUCTIONS


@pytest.mark.parametrize("state", HELD)
def test_what_layers_share_is_made_once(state: str) -> None:
    """The launches among it, which are most of it."""
    shared = of(state).token
    assert 0 < shared.calls <= MOST_SHARED_CALLS
    assert of(state).layer.instructions / 2 < shared.instructions <= MOST_SHARED_INSTRUCTIONS


def test_counts_are_the_same_each_time() -> None:
    assert counted(HELD["steady"]) == of("steady")


def test_how_blocks_are_read_is_kept_as_long_as_they_are() -> None:
    """A write of another block goes into their arrays only if nothing else holds these."""
    gc.collect()  # what other tests left
    before = len(decode._READINGS)
    with launching_nothing():
        model = launches.tiny_model(3, TYPES)
        caches = launches.caches_of(model, HELD["steady"])
        kept = []
        for _ in range(70):
            model.hidden(mx.array([[5]]), caches)
            kept.append(len(decode._READINGS) - before)
    assert set(kept) == {0, 3}  # none once a token has completed a block
    assert kept.count(0) == 2
