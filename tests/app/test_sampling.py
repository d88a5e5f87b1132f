import mlx.core as mx
import numpy as np
import pytest

from app.sampling import Sampler, Sampling
from kvcache import EmberError

LOGITS = mx.array([[0.0, 2.0, 1.0, -3.0, 1.5], [5.0, 2.0, 1.0, -3.0, 1.5]])


def _draws(sampling: Sampling, count: int = 200) -> set[int]:
    sampler = Sampler(sampling, [[0]])
    return {int(sampler(LOGITS[:1]).item()) for _ in range(count)}


def test_temperature_zero_takes_the_best_of_each_row() -> None:
    assert Sampler(Sampling(), [[0], [0]])(LOGITS).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(temperature=3.0, seed=1), {0, 1, 2, 3, 4}),
        (Sampling(temperature=3.0, top_k=2, seed=1), {1, 4}),
        (Sampling(temperature=3.0, top_p=0.6, seed=1), {1, 4}),
        (Sampling(temperature=3.0, min_p=0.3, seed=1), {1, 2, 4}),
    ],
)
def test_cut_offs_leave_only_likely_tokens(sampling: Sampling, expected: set[int]) -> None:
    assert _draws(sampling) == expected


def test_draws_follow_the_softmax() -> None:
    sampler = Sampler(Sampling(temperature=1.0, seed=2), [[0]])
    drawn = [int(sampler(LOGITS[:1]).item()) for _ in range(3000)]
    want = np.asarray(mx.softmax(LOGITS[0]))
    for token, probability in enumerate(want):
        assert drawn.count(token) / 3000 == pytest.approx(probability, abs=0.04)


def test_repetition_counts_the_prompt_and_what_was_drawn() -> None:
    sampler = Sampler(Sampling(repeat_penalty=4.0), [[1], [3]])
    assert sampler(LOGITS).tolist() == [4, 0]
    # Row 0 now avoids 1 and 4, row 1 avoids 3 and 0.
    assert sampler(LOGITS).tolist() == [2, 1]
    sampler.filter([1])
    assert sampler(LOGITS[1:]).tolist() == [4]


def test_repetition_counts_what_was_said_in_place_of_what_was_drawn() -> None:
    sampler = Sampler(Sampling(repeat_penalty=4.0), [[1], [3]])
    sampler(LOGITS)
    sampler.correct(mx.array([2, 1]))
    assert sampler(LOGITS).tolist() == [4, 0]


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"top_k": 2.5},
        {"seed": 1.5},
        {"min_p": 2.0},
        {"repeat_penalty": 0.0},
        {"seed": -1},
    ],
)
def test_impossible_settings_are_refused(bad: dict[str, float]) -> None:
    (name,) = ("temp" if field == "temperature" else field for field in bad)
    with pytest.raises(EmberError, match=f"got {name}="):
        Sampling(**bad)


@pytest.mark.parametrize("top_k", [4, 5, 6, 2**31 - 1])
def test_top_k_of_all_tokens_or_more_is_off(top_k: int) -> None:
    expected = {0, 1, 2, 4} if top_k == 4 else {0, 1, 2, 3, 4}
    assert _draws(Sampling(temperature=9.0, top_k=top_k, seed=1)) == expected


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1e-300),
        Sampling(temperature=5e-324),
        Sampling(temperature=1e-20),
        Sampling(temperature=1e-9),
        Sampling(temperature=100.0, top_p=1e-9),
        Sampling(temperature=100.0, min_p=1.0),
        Sampling(temperature=100.0, top_k=1),
    ],
)
def test_the_smallest_edges_take_the_best(sampling: Sampling) -> None:
    assert _draws(sampling, 20) == {1}
