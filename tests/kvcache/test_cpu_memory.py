import numpy as np
import pytest

from kvcache.cpu_memory import zeros
from kvcache.errors import CacheError


@pytest.mark.parametrize("shape", [(0,), (1, 3), (5, 7, 11), (3, 1 << 20)])
@pytest.mark.parametrize("kind", [np.uint8, np.float16, np.int64])
def test_memory_begins_with_a_line_of_the_cache(shape: tuple[int, ...], kind: type) -> None:
    memory = zeros(shape, kind)
    assert (memory.shape, memory.dtype) == (shape, kind)
    assert memory.__array_interface__["data"][0] % 64 == 0
    assert memory.__array_interface__["strides"] is None
    assert not memory.any()
    memory[...] = 3
    assert (memory == 3).all()


def test_more_than_the_system_has_is_refused() -> None:
    with pytest.raises(CacheError, match="no memory for a cache of this size"):
        zeros((1 << 40, 1 << 20), np.float64)
