from itertools import product

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest

from kvcache.codecs import codec
from kvcache.codecs.trellis import UNIT, least_cost, levels, lookup, search
from tests.kvcache.codecs.blocks import gaussian, relative_error, with_outliers
from tests.kvcache.codecs.train_trellis import centroids

BITS = (2, 3, 4)


def _levels_one_by_one(codes: npt.NDArray[np.uint32], bits: int) -> npt.NDArray[np.float64]:
    """As the drawing has it; codes [rows, D]."""
    table, dim = levels(bits), codes.shape[1]
    out = np.empty(codes.shape)
    for row, numbers in enumerate(codes):
        low = [int(number) & 1 for number in numbers]
        for d in range(dim):
            parity = low[d - 2] ^ low[(d + 1) % dim] ^ low[(d + 3) % dim]
            out[row, d] = table[(int(numbers[d]) >> 1) * 4 + 2 * parity + low[d]]
    return out


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dim", [5, 24, 64])
def test_levels_follow_from_the_channels_beside(bits: int, dim: int) -> None:
    codes = np.random.default_rng(4).integers(0, 2**bits, (7, dim)).astype(np.uint32)
    got = np.asarray(lookup(mx.array(codes), bits))
    np.testing.assert_allclose(got, _levels_one_by_one(codes, bits), rtol=1e-6)


@pytest.mark.parametrize("bits", BITS)
def test_levels_are_bytes_ascending_and_as_many_below_zero(bits: int) -> None:
    whole = np.array(levels(bits)) * UNIT
    assert len(whole) == 2 ** (bits + 1)
    np.testing.assert_allclose(whole, np.round(whole), atol=1e-5)
    assert np.abs(whole).max() < 127.5
    assert (np.diff(whole) > 0).all()
    np.testing.assert_array_equal(whole, -whole[::-1])


@pytest.mark.parametrize("bits", BITS)
def test_each_level_is_the_mean_of_what_it_stands_for(bits: int) -> None:
    table = np.array(levels(bits))
    # Rounding moves a level by up to half a step, and with it what its neighbours stand for.
    np.testing.assert_allclose(centroids(bits, 2048, table), table, atol=1.1 / UNIT)


def _least_of_all_codes(x: npt.NDArray[np.float32], bits: int) -> npt.NDArray[np.float64]:
    """The least squared error of any codes for rows x [rows, D], from each state in turn."""
    table = np.array(levels(bits)).reshape(-1, 4)
    errors = np.square(x[..., None, None] - table).min(axis=-2)  # [rows, D, subset]
    least = np.full(len(x), np.inf)
    for begun in range(32):
        costs = {begun: np.zeros(len(x))}
        for d in range(x.shape[1]):
            after: dict[int, npt.NDArray[np.float64]] = {}
            for (state, cost), bit in product(costs.items(), (0, 1)):
                bits_low = [state >> i & 1 for i in range(4, -1, -1)] + [bit]  # of d-2 .. d+3
                subset = 2 * (bits_low[0] ^ bits_low[3] ^ bits_low[5]) + bits_low[2]
                into = (state << 1 | bit) & 31
                here = cost + errors[:, d, subset]
                after[into] = np.minimum(here, after.get(into, here))
            costs = after
        least = np.minimum(least, costs[begun])
    return least


@pytest.mark.parametrize("bits", BITS)
def test_the_search_finds_nearly_the_best_of_all_codes(bits: int) -> None:
    x = np.random.default_rng(6).normal(size=(61, 64)).astype(np.float32)
    best = _least_of_all_codes(x, bits)
    errors = np.square(np.asarray(lookup(search(mx.array(x), bits), bits)) - x).sum(axis=1)
    assert (errors >= best - 1e-4).all()
    assert (errors < best + 1e-4).mean() > 0.5
    assert errors.mean() < 1.03 * best.mean()


@pytest.mark.parametrize("bits", BITS)
def test_biting_its_tail_costs_a_path_little(bits: int) -> None:
    x = gaussian(33, 64)
    free = least_cost(x, bits)
    error = mx.square(lookup(search(x, bits), bits) - x).sum(axis=-1)
    assert (error >= free - 1e-4).all()
    assert float(error.mean() / free.mean()) < 1.1


@pytest.mark.parametrize("bits", BITS)
def test_no_channel_pays_for_the_others(bits: int) -> None:
    x = np.asarray(gaussian(1500, 24)).reshape(-1, 24)
    found = np.asarray(lookup(search(mx.array(x), bits), bits))
    errors = np.square(found - x).mean(axis=0)
    assert errors.max() < 1.15 * errors.mean()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dim", [64, 80])
def test_loses_less_than_levels_alone_and_does_not_shrink(bits: int, dim: int) -> None:
    x = with_outliers(33, dim)
    trellis, alone = (codec(name, seed=2) for name in (f"trellis{bits}", f"turbo{bits}u"))
    decoded = trellis.decode(trellis.encode(x))
    along = (decoded * x).sum(axis=-1) / (x * x).sum(axis=-1)
    assert mx.allclose(along, mx.ones_like(along), atol=1e-3)
    assert trellis.shapes(33, dim) == alone.shapes(33, dim)
    assert relative_error(decoded, x) < 0.85 * relative_error(alone.decode(alone.encode(x)), x)


def test_tokens_of_any_size_are_coded_alike() -> None:
    x, scheme = gaussian(16, 64), codec("trellis3", seed=1)
    sizes = mx.array([1e-3, 1.0, 64.0, 1e4])[mx.arange(16) % 4][:, None]
    plain, scaled = scheme.encode(x), scheme.encode(x * sizes)
    same = plain.parts["words"] == scaled.parts["words"]
    assert float(same.astype(mx.float32).mean()) > 0.98
    assert mx.allclose(scheme.decode(scaled) / sizes, scheme.decode(plain), rtol=2e-2, atol=2e-2)


def test_saved_codes_stand_for_the_same_for_ever() -> None:
    codes = mx.array([[0, 7, 2, 5, 1, 6, 3, 4, 4, 0, 3, 1]], mx.uint32)
    whole = np.rint(np.asarray(lookup(codes, 3)) * UNIT).astype(int)
    assert whole.tolist() == [[-56, 56, -13, 31, -76, 42, -4, 21, 4, -56, -21, -76]]
