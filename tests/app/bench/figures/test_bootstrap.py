import numpy as np
import pytest

from app.bench.figures.bootstrap import paired_bootstrap
from app.bench.figures.spread import Spread


def test_equal_readings_do_not_differ() -> None:
    kl = np.array([0.1, 0.2, 0.7])
    found = paired_bootstrap(kl, kl, block=2)
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


def test_a_constant_difference_is_certain() -> None:
    kl = np.linspace(0, 1, 97)
    found = paired_bootstrap(kl + 0.25, kl, block=8)
    assert (found.value, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))


def test_the_interval_is_that_of_the_normal_distribution() -> None:
    """2000 independent differences of sd 3: the mean's 95% is +- 1.96 * 3 / sqrt(2000)."""
    noise = np.random.default_rng(2).normal(0.5, 3, 2000)
    found = paired_bootstrap(noise, np.zeros(2000), block=1)
    half = 1.96 * 3 / 2000**0.5
    assert found.high - found.value == pytest.approx(half, rel=0.1)
    assert found.value - found.low == pytest.approx(half, rel=0.1)


def test_neighbours_that_move_together_widen_it() -> None:
    noise = np.repeat(np.random.default_rng(2).normal(0, 1, 100), 20)
    apart, together = (paired_bootstrap(noise, np.zeros(2000), block=n) for n in (1, 40))
    assert together.high - together.low > 3 * (apart.high - apart.low)


def test_a_block_longer_than_the_text_is_the_text() -> None:
    found = paired_bootstrap(np.array([1.0, 3.0]), np.array([0.0, 0.0]), block=32)
    assert (found.value, found.low, found.high) == (2.0, 2.0, 2.0)


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="two equal lengths"):
        paired_bootstrap(np.zeros(3), np.zeros(4), block=1)


def test_spread_by_hand() -> None:
    found = Spread.of([1.0, 2.0, 6.0])
    assert (found.mean, found.median) == (3.0, 2.0)
    assert found.sd == pytest.approx(7**0.5)
    assert Spread.of([4.0]).sd == 0.0
