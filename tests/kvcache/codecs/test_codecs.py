"""What every codec keeps to; what is particular to one is tested in its own module."""

import re
from itertools import pairwise
from math import prod

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcache.codecs import NAMES, Encoded, codec
from kvcache.codecs.unencoded import UnencodedCodec
from kvcache.errors import CacheError
from tests.kvcache.codecs.blocks import gaussian, relative_error, with_outliers

ERRORS = {
    "f16": 4.94e-08,
    "q8": 3.2e-05,
    "q6": 0.00052,
    "q5": 0.0021,
    "q4": 0.0090,
    "q3": 0.041,
    "q2": 0.225,
    "h8": 3.2e-05,
    "h6": 0.00052,
    "h5": 0.00215,
    "h4": 0.0092,
    "h3": 0.042,
    "h2": 0.23,
    "turbo4": 0.0102,
    "turbo3": 0.0377,
    "turbo2": 0.134,
    "turbo4u": 0.0089,
    "turbo3u": 0.0367,
    "turbo2u": 0.155,
    "turbo4p": 0.0213,
    "turbo3p": 0.0735,
    "turbo2p": 0.227,
    "trellis4": 0.0057,
    "trellis3": 0.0215,
    "trellis2": 0.091,
    "kivi5": 0.0021,
    "kivi4": 0.0089,
    "kivi3": 0.041,
    "kivi2": 0.22,
    "hkivi5": 0.0021,
    "hkivi4": 0.0089,
    "hkivi3": 0.041,
    "hkivi2": 0.22,
    "kvarn8": 4.4e-05,
    "kvarn6": 0.00071,
    "kvarn5": 0.00275,
    "kvarn4": 0.0106,
    "kvarn3": 0.04,
    "kvarn2": 0.19,
}
ROTATING = [name for name in NAMES if codec(name).rotation is not None]


def _family(name: str) -> str:
    """ "turbo4p" -> "turbop"."""
    return re.sub(r"\d+", "", name)


def _same(a: Encoded, b: Encoded) -> bool:
    return all(bool(mx.array_equal(a.parts[name], b.parts[name])) for name in a.parts)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("tokens", "dim"), [(64, 64), (32, 80), (64, 80), (32, 96), (1, 128)])
def test_arrays_are_as_announced_to_the_byte(name: str, tokens: int, dim: int) -> None:
    scheme = codec(name, seed=4)
    encoded = scheme.encode(gaussian(tokens, dim))
    shapes = scheme.shapes(tokens, dim)
    assert list(encoded.parts) == list(shapes)
    for part, spec in shapes.items():
        array = encoded.parts[part]
        assert (array.shape, array.dtype) == ((2, 3, *spec.shape), spec.dtype)
    stored = sum(array.nbytes for array in encoded.parts.values())
    assert scheme.bits_per_element(tokens, dim) == 8 * stored / (2 * 3 * tokens * dim)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dim", [64, 80, 128])
def test_error_on_gaussian_blocks(name: str, dim: int) -> None:
    x = gaussian(64, dim)
    scheme = codec(name, seed=1)
    assert relative_error(scheme.decode(scheme.encode(x)), x) < ERRORS[name]


@pytest.mark.parametrize("family", sorted({_family(name) for name in NAMES} - {"f"}))
def test_every_bit_lowers_the_error(family: str) -> None:
    x = gaussian(64, 64)
    members = [codec(name, seed=1) for name in NAMES if _family(name) == family]
    members.sort(key=lambda scheme: scheme.code_bits)
    errors = [relative_error(scheme.decode(scheme.encode(x)), x) for scheme in members]
    assert len(errors) >= 3
    assert all(more < 0.5 * fewer for fewer, more in pairwise(errors))


@pytest.mark.parametrize("name", NAMES)
def test_encoding_is_deterministic_and_dtypes_agree(name: str) -> None:
    x = gaussian(16, 64).astype(mx.bfloat16)
    first = codec(name, seed=2).encode(x)
    assert _same(first, codec(name, seed=2).encode(x))
    assert _same(first, codec(name, seed=2).encode(x.astype(mx.float32)))


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_a_batch_and_heads_do_not_touch(name: str) -> None:
    scheme, x = codec(name, seed=2), with_outliers(32, 64)
    together = scheme.encode(x)
    for row in range(x.shape[0]):
        alone = scheme.encode(x[row : row + 1, :2])
        for part, array in alone.parts.items():
            assert mx.array_equal(array, together.parts[part][row : row + 1, :2])


@pytest.mark.parametrize("name", NAMES)
def test_decodes_a_ring_of_blocks_at_once(name: str) -> None:
    scheme = codec(name, seed=2)
    blocks = [scheme.encode(gaussian(16, 80, seed=seed)) for seed in range(3)]
    ring = {part: mx.stack([block.parts[part] for block in blocks]) for part in blocks[0].parts}
    decoded = scheme.decode(Encoded(parts=ring, dim=80))
    expected = mx.stack([scheme.decode(block) for block in blocks])
    assert decoded.dtype == mx.float32
    assert mx.allclose(decoded, expected, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_scores_and_outputs_may_be_taken_in_the_rotated_basis(name: str) -> None:
    scheme, k, q = codec(name, seed=6), gaussian(16, 80), gaussian(5, 80, seed=9)
    encoded = scheme.encode(k)
    decoded, rotated = scheme.decode(encoded), scheme.decode_rotated(encoded)
    scores = scheme.rotate(q) @ rotated.swapaxes(-1, -2)
    assert mx.allclose(scores, q @ decoded.swapaxes(-1, -2), atol=1e-3)
    assert mx.allclose(scheme.unrotate(scores @ rotated), scores @ decoded, atol=2e-2)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12)
@given(
    tokens=st.integers(1, 70),
    dim=st.sampled_from([24, 64, 80, 128]),
    exponent=st.floats(-30, 4),
    spikes=st.lists(st.tuples(st.integers(0, 69), st.integers(0, 127)), max_size=3),
    constant=st.booleans(),
    seed=st.integers(0, 9),
)
def test_finite_blocks_never_decode_to_nan(
    name: str,
    tokens: int,
    dim: int,
    exponent: float,
    spikes: list[tuple[int, int]],
    constant: bool,
    seed: int,
) -> None:
    x = np.array(gaussian(tokens, dim, seed=seed))
    x = np.clip(np.ones_like(x) if constant else x, -1, 1) * np.float32(10.0**exponent)
    for token, channel in spikes:
        x[..., token % tokens, channel % dim] = 1e4
    scheme = codec(name, seed=seed)
    decoded = np.asarray(scheme.decode(scheme.encode(mx.array(x))))
    assert np.isfinite(decoded).all()
    # Past float16's smallest numbers, an error no larger than the block itself.
    assert np.abs(decoded - x).max() <= 4 * np.abs(x).max() + 1e-4


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("times", [1e12, 1e20, 3e37, 1e38])
@pytest.mark.parametrize("name", NAMES)
def test_the_largest_numbers_saturate(name: str, times: float, dtype: mx.Dtype) -> None:
    """Neither they nor what is computed of them becomes NaN; what is finite stays on its side."""
    given = mx.clip(gaussian(32, 64), -3, 3)
    x = (given * times).astype(dtype)
    decoded = np.asarray(codec(name).decode(codec(name).encode(x)))
    assert np.isfinite(decoded).all()
    assert (np.abs(decoded).max(axis=-1) > 3e4).all()
    along = (decoded / np.abs(decoded).max() * np.asarray(given)).sum(axis=-1)
    assert (along > 0).mean() > 0.9


def test_what_is_not_encoded_keeps_them() -> None:
    x = mx.array([3e38, -1e20, 2.0]).reshape(1, 1, 1, 3)
    scheme = UnencodedCodec(name="f16", code_bits=32, dtype=mx.float32)
    assert mx.array_equal(scheme.decode(scheme.encode(x)), x)


@pytest.mark.parametrize("name", NAMES)
def test_a_block_of_zeros_stays_zero(name: str) -> None:
    scheme = codec(name)
    assert mx.array_equal(
        scheme.decode(scheme.encode(mx.zeros((1, 2, 8, 64)))), mx.zeros((1, 2, 8, 64))
    )


@pytest.mark.parametrize("name", ROTATING)
def test_refuses_a_dimension_it_cannot_rotate(name: str) -> None:
    with pytest.raises(CacheError, match="got head dimension 72"):
        codec(name).encode(mx.zeros((1, 2, 8, 72)))


def test_refuses_other_ranks_and_dtypes() -> None:
    for x in (mx.zeros((2, 8, 64)), mx.zeros((1, 2, 8, 64), mx.int32)):
        with pytest.raises(CacheError, match=r"to encode with h4, expected floating-point \[B,"):
            codec("h4").encode(x)


def test_announced_bytes_count_one_head() -> None:
    spec = codec("q4").shapes(64, 64)["words"]
    assert spec.nbytes == 4 * prod(spec.shape) == 64 * 32
