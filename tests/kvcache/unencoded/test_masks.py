import numpy as np
import pytest

from kvcache.unencoded.masks import causal, hide_padding


@pytest.mark.parametrize("window", [None, 1, 3])
def test_a_query_sees_itself_and_its_window_before(window: int | None) -> None:
    mask = np.asarray(causal(3, 7, window=window))
    for row, column in np.ndindex(3, 7):
        behind = (4 + row) - column
        assert mask[row, column] == (0 <= behind < (window or 99))


def test_padding_is_hidden_from_tokens_only() -> None:
    padding = np.array([0, 5, 2], np.int32)
    mask = np.asarray(hide_padding(causal(4, 7), padding))
    assert mask.shape == (3, 1, 4, 7)
    for row, query, key in np.ndindex(3, 4, 7):
        seen = key <= 3 + query and (key >= padding[row] or 3 + query < padding[row])
        assert mask[row, 0, query, key] == seen
    assert mask.any(axis=-1).all()
