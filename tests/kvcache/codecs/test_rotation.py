import mlx.core as mx
import numpy as np
import pytest

from kvcache.codecs.rotation import SignedHadamard, check_rotatable
from kvcache.errors import CacheError
from tests.kvcache.codecs.blocks import gaussian

DIMS = [24, 56, 64, 80, 96, 128, 160, 256]


@pytest.mark.parametrize("dim", DIMS)
def test_inverse_is_exact_to_rounding(dim: int) -> None:
    rotation, x = SignedHadamard(seed=3), gaussian(7, dim)
    assert mx.allclose(rotation.inverse(rotation.forward(x)), x, atol=1e-5)


@pytest.mark.parametrize("dim", DIMS)
def test_dot_products_do_not_change(dim: int) -> None:
    rotation, x, y = SignedHadamard(seed=3), gaussian(7, dim), gaussian(5, dim, seed=8)
    rotated = rotation.forward(x) @ rotation.forward(y).swapaxes(-1, -2)
    assert mx.allclose(rotated, x @ y.swapaxes(-1, -2), atol=2e-4)


@pytest.mark.parametrize("dim", [64, 80, 96])
def test_spreads_one_channel_over_all(dim: int) -> None:
    spike = mx.zeros((1, 2, 1, dim))
    spike[..., 5] = 1.0
    assert mx.allclose(mx.abs(SignedHadamard(seed=1).forward(spike)), mx.array(dim**-0.5))


def test_signs_come_before_the_transform() -> None:
    constant = mx.ones((1, 2, 1, 64))
    assert (mx.abs(SignedHadamard(seed=1).forward(constant)) < 4).all()


def test_heads_seeds_and_purposes_differ() -> None:
    x = mx.broadcast_to(gaussian(1, 64)[:1, :1], (1, 3, 1, 64))
    rotated = [
        np.asarray(SignedHadamard(seed=seed, purpose=purpose).forward(x))
        for seed, purpose in ((0, "basis"), (1, "basis"), (0, "projection"))
    ]
    rows = np.concatenate(rotated, axis=1)[0, :, 0]
    assert len({row.tobytes() for row in rows}) == 9


def test_a_head_does_not_depend_on_its_neighbours() -> None:
    rotation, x = SignedHadamard(seed=2), gaussian(4, 64)
    assert mx.array_equal(rotation.forward(x)[:, :2], rotation.forward(x[:, :2]))


def test_saved_blocks_decode_alike_for_ever() -> None:
    each_channel = mx.broadcast_to(mx.eye(64), (2, 64, 64))
    first = SignedHadamard(seed=7).forward(each_channel)[..., 0]
    negative = np.packbits(np.asarray(first) < 0, axis=1)
    assert negative.tolist() == [
        [100, 46, 241, 121, 199, 165, 131, 83],
        [103, 80, 74, 171, 188, 126, 119, 118],
    ]


@pytest.mark.parametrize("dim", [1, 7, 12, 20, 28, 72, 88, 100, 120, 576])
def test_refuses_lengths_without_a_transform(dim: int) -> None:
    with pytest.raises(CacheError, match=f"head dimension {dim}.*such as q8"):
        check_rotatable(dim)


@pytest.mark.parametrize("dim", DIMS)
def test_the_basis_does_the_same(dim: int) -> None:
    rotation, x = SignedHadamard(seed=3), gaussian(7, dim)
    basis, heads = rotation.basis(x.shape[1], dim), x.shape[1]
    assert basis.signs.shape == (heads, dim)
    rotated = (x * basis.signs[:, None]) @ basis.matrix
    assert mx.allclose(rotated, rotation.forward(x), atol=1e-5)
    assert mx.allclose((rotated @ basis.transposed) * basis.signs[:, None], x, atol=1e-5)


def test_a_length_without_a_transform_has_no_basis() -> None:
    with pytest.raises(CacheError, match="head dimension 72"):
        SignedHadamard(seed=3).basis(2, 72)
