"""Drawing without sorting, held to the definitions of the cut-offs with everything sorted."""

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.drawing import Drawer, left

Floats = npt.NDArray[np.floating]
_DRAWS = 5_000
# In standard deviations; one in a million is further away.
_UNLIKELY = 4.75


def _expected(logits: Floats, top_p: float, top_k: int, min_p: float) -> set[int]:
    """What is left, each cut-off by its definition, over all tokens in order."""
    order = np.argsort(-logits, kind="stable")
    shares = np.exp(logits.astype(np.float64))[order]
    shares /= shares.sum()
    above = np.cumsum(shares) - shares
    kept = (above < top_p) if top_p < 1 else np.ones(len(order), bool)
    kept &= shares >= min_p * shares[0]
    if top_k:
        kept &= np.arange(len(order)) < top_k
    return set(order[kept].tolist())


def _logits(size: int, seed: int, spread: float) -> Floats:
    logits = np.random.default_rng(seed).normal(0, spread, size).astype(np.float32)
    below: Floats = logits - logits.max()
    return below


@given(
    size=st.sampled_from([2, 7, 300, 5000]),
    seed=st.integers(0, 9),
    spread=st.sampled_from([0.01, 1.0, 4.0, 12.0]),
    top_p=st.sampled_from([1e-9, 0.1, 0.5, 0.8, 0.95, 0.999, 1.0]),
    top_k=st.sampled_from([0, 1, 2, 5, 40, 299, 10_000]),
    min_p=st.sampled_from([0.0, 1e-6, 0.05, 0.5, 1.0]),
)
def test_the_cut_offs_leave_what_they_are_defined_to(
    size: int, seed: int, spread: float, top_p: float, top_k: int, min_p: float
) -> None:
    logits = _logits(size, seed, spread)
    found = left(logits, top_p=top_p, top_k=top_k, min_p=min_p)
    kept = set(range(size)) if found is None else set(found.tolist())
    expected = _expected(logits, top_p, top_k, min_p)
    # Where a sum, or a share, is within a rounding of its bound, one more or less is as right.
    assert len(kept ^ expected) <= 1
    assert int(logits.argmax()) in kept


@pytest.mark.parametrize(
    "cut_offs",
    [
        {},
        {"top_p": 0.8},
        {"min_p": 0.1},
        {"top_k": 9},
        {"top_p": 0.9, "top_k": 12, "min_p": 0.02},
    ],
)
@pytest.mark.parametrize("temperature", [0.4, 1.0, 1.7])
def test_draws_are_spread_as_the_softmax_of_what_is_left(
    temperature: float, cut_offs: dict[str, float]
) -> None:
    logits = _logits(21, 4, 1.5)
    settings = {"top_p": 1.0, "top_k": 0, "min_p": 0.0} | cut_offs
    kept = sorted(_expected(logits, settings["top_p"], int(settings["top_k"]), settings["min_p"]))
    weights = np.exp(logits[kept].astype(np.float64) / temperature)
    drawer = Drawer(
        temperature=temperature,
        top_p=settings["top_p"],
        top_k=int(settings["top_k"]),
        min_p=settings["min_p"],
        seed=5,
    )
    drawn = np.asarray(drawer(mx.array(np.tile(logits, (_DRAWS, 1)))))
    counts = np.bincount(drawn, minlength=len(logits))
    assert counts[kept].sum() == _DRAWS
    expected = weights / weights.sum() * _DRAWS
    often = expected >= 5
    squared = (counts[kept][often] - expected[often]) ** 2 / expected[often]
    # Chi-squared, made normal as Wilson and Hilferty did.
    free = max(1, len(squared) - 1)
    deviation = ((squared.sum() / free) ** (1 / 3) - 1 + 2 / (9 * free)) / (2 / (9 * free)) ** 0.5
    assert deviation < _UNLIKELY


def test_tokens_as_likely_as_the_last_one_stay() -> None:
    logits = np.array([-1, 0, -1, -1, -9], np.float32)
    for cut_offs in ({"top_k": 2}, {"top_p": 0.6}):
        found = left(logits, **cut_offs)
        assert found is not None
        assert found.tolist() == [0, 1, 2, 3]


def test_a_seed_repeats_what_is_drawn_and_none_does_not() -> None:
    logits = mx.array(_logits(5000, 1, 1.0)[None])

    def drawn(seed: int | None) -> list[int]:
        drawer = Drawer(temperature=1.0, top_p=0.95, top_k=0, min_p=0.0, seed=seed)
        return [int(drawer(logits).item()) for _ in range(9)]

    assert drawn(2**64 - 1) == drawn(2**64 - 1)
    assert len({tuple(drawn(seed)) for seed in (None, None, 1, 2)}) == 4


def test_a_draw_does_not_hang_on_whether_an_unlikely_token_is_left() -> None:
    logits = _logits(300, 2, 1.0)
    drawn = []
    for top_k in (40, 41):
        drawer = Drawer(temperature=1.0, top_p=1.0, top_k=top_k, min_p=0.0, seed=9)
        drawn.append(np.asarray(drawer(mx.array(np.tile(logits, (500, 1))))))
    assert (drawn[0] != drawn[1]).mean() < 0.02


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_not_drawn_from(value: float) -> None:
    logits = mx.array(np.array([[0, value, 1], [0, 5, 1]], np.float32))
    drawer = Drawer(temperature=1e-9, top_p=0.5, top_k=2, min_p=0.1, seed=1)
    assert drawer(logits).tolist() == [0, 1]


def test_tokens_that_cannot_be_are_never_drawn() -> None:
    logits = mx.array(np.array([[-np.inf, 0, -np.inf, 0]], np.float32))
    for top_p in (1.0, 0.999):
        drawer = Drawer(temperature=100.0, top_p=top_p, top_k=0, min_p=0.0, seed=1)
        assert {int(drawer(logits).item()) for _ in range(50)} == {1, 3}
