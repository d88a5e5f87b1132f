"""What draws the tokens of one row among others."""

import mlx.core as mx
import pytest

from app.sampling import Sampling
from app.serve.row import greedy, sampler

LOGITS = mx.log(mx.array([[0.1, 0.0, 0.6, 0.3, 0.0]]))


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("seed", [None, 5])
def test_more_tokens_than_there_are_cut_none_off(
    on_gpu: bool, seed: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.sampling.on_gpu", lambda: on_gpu)
    draw = sampler(Sampling(temperature=1.0, top_k=10**6, seed=seed), LOGITS.shape[-1])
    drawn = {int(draw(LOGITS).item()) for _ in range(200)}
    assert drawn == {0, 2, 3}


def test_rows_that_take_the_likeliest_share_what_takes_it() -> None:
    assert sampler(Sampling(), 5) is sampler(Sampling(temperature=1e-30), 5) is greedy
    assert greedy(LOGITS).tolist() == [2]


def test_a_seed_draws_the_same_whoever_draws_between() -> None:
    def draws(beside: bool) -> list[int]:
        mine, other = (sampler(Sampling(temperature=1.0, seed=seed), 5) for seed in (3, None))
        found = []
        for _ in range(20):
            found.append(int(mine(LOGITS).item()))
            if beside:
                other(LOGITS)
        return found

    assert draws(beside=False) == draws(beside=True)
