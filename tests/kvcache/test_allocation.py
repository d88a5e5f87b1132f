from itertools import product

import numpy as np
import pytest

from kvcache import CacheError
from kvcache.allocation import Losses, allocate

BITS = {"hkivi2": 2.5, "hkivi3": 3.5, "hkivi4": 4.5, "turbo2u": 2.25, "turbo3u": 3.25}


def _losses(seed: int, layers: int) -> Losses:
    """A bit less costs four times as much, and layers differ a lot, as they do."""
    drawn = np.random.default_rng(seed).lognormal(-7, 2, (2, layers))
    keys, values = (
        {name: list(scale * 4.0 ** -BITS[name]) for name in BITS if name.startswith(family)}
        for family, scale in zip(("hkivi", "turbo"), drawn, strict=True)
    )
    return Losses(keys=keys, values=values)


def _total(losses: Losses, chosen: tuple[str, ...]) -> tuple[float, float]:
    """Mean bits, and the whole loss."""
    bits, loss = 0.0, 0.0
    for layer, pair in enumerate(chosen):
        keys, values = pair.split("/")
        bits += BITS[keys] + BITS[values]
        loss += losses.keys[keys][layer] + losses.values[values][layer]
    return bits / (2 * len(chosen)), loss


@pytest.mark.parametrize("mean", [2.4, 2.61, 3.0, 3.33, 3.875, 9.0])
@pytest.mark.parametrize("seed", range(3))
def test_few_choices_of_all_are_better(seed: int, mean: float) -> None:
    """Against every choice there is, within what one change of one layer makes."""
    losses = _losses(seed, layers=3)
    bits, loss = _total(losses, allocate(losses, BITS, mean))
    assert bits <= mean + 1e-9
    pairs = [f"{keys}/{values}" for keys, values in product(losses.keys, losses.values)]
    every = [_total(losses, chosen) for chosen in product(pairs, repeat=3)]
    best = min(loss for bits, loss in every if bits <= mean + 1e-9)
    assert best <= loss <= 1.5 * best


def test_uniform_is_not_better() -> None:
    losses = _losses(7, layers=23)
    uniform = _total(losses, ("hkivi3/turbo3u",) * 23)
    bits, loss = _total(losses, allocate(losses, BITS, uniform[0]))
    assert bits <= uniform[0]
    assert loss < 0.8 * uniform[1]


def test_what_matters_more_takes_more_bits() -> None:
    keys = {"hkivi2": [1.0, 16.0, 4.0], "hkivi3": [0.25, 4.0, 1.0]}
    values = {"turbo2u": [0.1] * 3, "turbo3u": [0.09] * 3}
    losses = Losses(keys=keys, values=values)
    assert allocate(losses, BITS, (3 * 2.25 + 2.5 + 2.5 + 3.5) / 6) == (
        "hkivi2/turbo2u",
        "hkivi3/turbo2u",
        "hkivi2/turbo2u",
    )


def test_too_few_bits_are_refused() -> None:
    with pytest.raises(CacheError, match=r"got 2.3 bits, expected at least 2.38"):
        allocate(_losses(1, layers=5), BITS, 2.3)


def test_bits_that_are_said_to_be_enough_are() -> None:
    losses, finer = _losses(1, layers=5), BITS | {"turbo2u": 2.1272}
    with pytest.raises(CacheError, match=r"got 2.31 bits, expected at least 2.32"):
        allocate(losses, finer, 2.31)
    assert allocate(losses, finer, 2.32)
