import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcache.codecs.packing import pack, unpack, words_per_token


def _codes(bits: int, shape: tuple[int, ...], seed: int = 3) -> mx.array:
    return mx.array(np.random.default_rng(seed).integers(0, 2**bits, shape).astype(np.uint32))


def _stream(row: list[int], bits: int) -> list[int]:
    """The words of one row, from its definition."""
    whole = sum(code << (bits * index) for index, code in enumerate(row))
    words = words_per_token(bits, len(row))
    return [(whole >> (32 * word)) & 0xFFFFFFFF for word in range(words)]


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [1, 7, 20, 64, 80])
def test_words_are_one_little_endian_stream(bits: int, count: int) -> None:
    codes = _codes(bits, (5, count))
    words = pack(codes, bits)
    assert words.dtype == mx.uint32
    assert words.tolist() == [_stream(row, bits) for row in np.asarray(codes).tolist()]


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group", [32, 64])
def test_words_are_those_of_mlx_quantize(bits: int, group: int) -> None:
    x = mx.array(np.random.default_rng(1).normal(size=(11, 192)).astype(np.float32))
    words, scales, biases = mx.quantize(x, group_size=group, bits=bits)
    codes = unpack(words, bits, 192)
    grouped = codes.reshape(11, -1, group) * scales[..., None] + biases[..., None]
    expected = mx.dequantize(words, scales, biases, group_size=group, bits=bits)
    assert mx.allclose(grouped.reshape(11, 192), expected, atol=1e-6)
    assert mx.array_equal(pack(codes, bits), words)


@settings(max_examples=40)
@given(bits=st.integers(1, 8), count=st.integers(1, 150), seed=st.integers(0, 99))
def test_unpack_undoes_pack(bits: int, count: int, seed: int) -> None:
    codes = _codes(bits, (2, 3, count), seed)
    words = pack(codes, bits)
    assert words.shape == (2, 3, words_per_token(bits, count))
    assert mx.array_equal(unpack(words, bits, count), codes)


def test_packs_views_that_are_not_contiguous() -> None:
    codes = _codes(3, (40, 7)).T
    assert mx.array_equal(unpack(pack(codes, 3), 3, 40), codes)
    words = mx.stack([pack(codes, 3)] * 2, axis=1)[:, 1]
    assert mx.array_equal(unpack(words, 3, 40), codes)
