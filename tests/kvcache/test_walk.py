"""A sample of the long walk; `make soak` walks ten times as far."""

import pytest

from kvcache import Backend
from tests.kvcache.walk import KINDS, Walk

# Each backend in parts, which several processes take.
PARTS, STEPS = 4, 2500


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.CPU])
def test_whatever_is_asked_the_list_of_tokens_says_so(backend: Backend, part: int) -> None:
    walk = Walk(backend, part)
    walk.run(STEPS)
    assert walk.walked.total() == STEPS
    assert set(walk.walked) == set(KINDS)
