import mlx.core as mx
import pytest

from kvcache.codecs import codec
from kvcache.codecs.affine import group_size
from tests.kvcache.codecs.blocks import gaussian, relative_error, with_outliers


@pytest.mark.parametrize(
    ("dim", "group"), [(24, 24), (64, 64), (80, 40), (96, 48), (112, 56), (128, 64), (256, 64)]
)
def test_groups_divide_the_head(dim: int, group: int) -> None:
    assert group_size(dim) == group


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("dim", [64, 128])
def test_mlx_reads_the_arrays(bits: int, dim: int) -> None:
    scheme = codec(f"q{bits}")
    encoded = scheme.encode(gaussian(7, dim))
    words, scales, zeros = encoded.parts.values()
    read = mx.dequantize(words, scales, zeros, group_size=64, bits=bits)
    assert mx.allclose(scheme.decode(encoded), read.astype(mx.float32), atol=5e-3)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_no_value_is_off_by_more_than_half_a_step(bits: int) -> None:
    x, scheme = with_outliers(7, 80), codec(f"q{bits}")
    encoded = scheme.encode(x)
    off = mx.abs(scheme.decode(encoded) - x).reshape(2, 3, 7, 2, 40).max(axis=-1)
    largest = mx.abs(x).reshape(2, 3, 7, 2, 40).max(axis=-1)
    assert (off <= 0.5 * encoded.parts["scales"] + 2e-3 * largest).all()


def test_rotation_pays_where_channels_stick_out() -> None:
    x = with_outliers(64, 64)
    plain, rotated = codec("q4"), codec("h4", seed=1)
    error = relative_error(plain.decode(plain.encode(x)), x)
    assert relative_error(rotated.decode(rotated.encode(x)), x) < error


@pytest.mark.parametrize("name", ["kivi4", "hkivi3"])
def test_a_channel_keeps_its_mean_and_does_not_shrink(name: str) -> None:
    x, scheme = gaussian(31, 80) + 3, codec(name, seed=5)
    got, want = scheme.decode_rotated(scheme.encode(x)), scheme.rotate(x)
    mean = want.mean(axis=-2, keepdims=True)
    assert mx.allclose(got.mean(axis=-2, keepdims=True), mean, atol=0.02)
    centred = want - mean
    along = (got * centred).sum(axis=-2) / (centred * centred).sum(axis=-2)
    assert mx.allclose(along, mx.ones_like(along), atol=2e-3)


def test_a_small_channel_beside_a_large_one_is_coded_as_well() -> None:
    x = gaussian(64, 64)
    factors = mx.array([0.5, 128.0])[mx.arange(64) % 2]
    scheme = codec("kivi5")
    plain, scaled = (scheme.decode(scheme.encode(block)) for block in (x, x * factors))
    assert mx.allclose(scaled, plain * factors, rtol=1e-3, atol=2e-3)
