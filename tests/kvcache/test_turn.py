import mlx.core as mx
import numpy as np
import pytest

from kvcache import Rotation


@pytest.mark.parametrize("traditional", [True, False])
@pytest.mark.parametrize("pairs", [3, 5])
def test_rows_turn_by_what_they_are_told(traditional: bool, pairs: int) -> None:
    """Each row as mx.fast.rope turns a single token at that position."""
    periods = 7.0 ** (np.arange(pairs) / pairs)
    rotation = Rotation(periods=periods, traditional=traditional)
    x = mx.random.normal((2, 3, 4, 10), key=mx.random.key(1))
    by = [-5, 0, 11, -300]
    got = np.asarray(rotation(x, by))
    for row, position in enumerate(by):
        want = mx.fast.rope(
            x[:, :, row : row + 1],
            2 * pairs,
            traditional=traditional,
            base=None,
            scale=1.0,
            offset=position,
            freqs=mx.array(periods.astype(np.float32)),
        )
        np.testing.assert_allclose(got[:, :, row : row + 1], np.asarray(want), atol=3e-5)


def test_layers_share_one_table_for_kernels() -> None:
    """Whether their rotations are one, as a model's are, or several, as a restored cache's."""
    periods, by = 7.0 ** (np.arange(5) / 5), (0, -1_234_567)
    one, other = (Rotation(periods=periods.copy(), traditional=False) for _ in range(2))
    table = one.table(by)
    assert other.table(by) is table
    angles = np.array(by)[:, None] / periods
    want = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    np.testing.assert_allclose(np.asarray(table), want, atol=1e-7)


def test_turning_by_nothing_changes_nothing() -> None:
    rotation = Rotation(periods=np.ones(2), traditional=True)
    x = mx.ones((1, 1, 2, 4), mx.float16)
    assert rotation(x, [0, 0]) is x
    assert rotation(x, [1, 2]).dtype == mx.float16
