"""Records of the CPU against the codecs that they stand for."""

from itertools import product

import mlx.core as mx
import numpy as np
import pytest

from kvcache import CacheError
from kvcache.codecs import NAMES, codec
from kvcache.codecs.affine import ChannelAffineCodec, TokenAffineCodec
from kvcache.codecs.base import Encoded
from kvcache.codecs.packing import pack, unpack
from kvcache.native.codec import CpuCodec, Role
from kvcache.native.library import Library
from kvcache.native.structs import Array, Bytes, Floats
from tests.kvcache.codecs.metrics import metric

TAKEN = tuple(name for name in NAMES if not name.endswith("p"))
BLOCKS, BATCH, HEADS = 2, 2, 3
SHAPES = [(64, 64), (32, 80), (96, 128)]  # M, D


def _forms() -> list[tuple[str, Role, int, int]]:
    """Every codec in both roles, each in a shape of its own."""
    forms = []
    for i, (name, role) in enumerate(product(TAKEN, Role)):
        tokens, dim = SHAPES[(i + i // len(SHAPES)) % len(SHAPES)]
        # Heads of 80 have groups of 40, which the kernels do not take.
        grouped = isinstance(codec(name), TokenAffineCodec)
        forms.append((name, role, tokens, 96 if grouped and dim == 80 else dim))
    return forms


FORMS = _forms()


def _tokens(tokens: int, dim: int) -> Floats:
    """Keys as models have them: outlier channels, an offset, tokens of unequal length."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(BATCH, HEADS, BLOCKS * tokens, dim)).astype(np.float32)
    x *= rng.uniform(0.3, 3, size=(BATCH, HEADS, BLOCKS * tokens, 1)).astype(np.float32)
    x[..., 5] *= 9
    return x + rng.normal(size=(1, HEADS, 1, dim)).astype(np.float32)


def _coder(name: str, kernels: Library, role: Role, tokens: int, dim: int) -> CpuCodec:
    coder = CpuCodec.of(
        codec(name, seed=7), tokens=tokens, heads=HEADS, dim=dim, role=role, kernels=kernels
    )
    assert coder is not None
    return coder


def _encode(coder: CpuCodec, x: Array) -> Bytes:
    records = np.empty((BLOCKS, BATCH, HEADS, coder.record_bytes), np.uint8)
    coder.encode(x, records)
    return records


def _blocks(x: Floats, tokens: int) -> mx.array:
    """[B, Hkv, N * M, D] -> [N, B, Hkv, M, D]."""
    split = x.reshape(BATCH, HEADS, BLOCKS, tokens, x.shape[-1])
    return mx.array(np.ascontiguousarray(split.transpose(2, 0, 1, 3, 4)))


def _reference(coder: CpuCodec, x: Floats) -> Encoded:
    """Encoded by MLX."""
    blocks = [coder.codec.encode(block) for block in _blocks(x, coder.tokens)]
    parts = {name: mx.stack([b.parts[name] for b in blocks]) for name in blocks[0].parts}
    return Encoded(parts=parts, dim=coder.dim)


def _joined(blocks: mx.array) -> Floats:
    """[N, B, Hkv, M, D] -> [B, Hkv, N * M, D]."""
    moved = np.asarray(blocks).transpose(1, 2, 0, 3, 4)
    return moved.reshape(*moved.shape[:2], -1, moved.shape[-1])


@pytest.mark.parametrize(("name", "role", "tokens", "dim"), FORMS)
def test_parts_come_back_and_decode_alike(
    kernels: Library, name: str, role: Role, tokens: int, dim: int
) -> None:
    coder = _coder(name, kernels, role, tokens, dim)
    encoded = _reference(coder, _tokens(tokens, dim))
    records = coder.from_parts(encoded.parts)
    back = coder.to_parts(records)
    assert back.keys() == encoded.parts.keys()
    for part, array in encoded.parts.items():
        assert back[part].dtype == array.dtype
        np.testing.assert_array_equal(np.asarray(back[part]), np.asarray(array), err_msg=part)
    want = _joined(coder.codec.decode(encoded))
    np.testing.assert_allclose(coder.decode(records), want, atol=2e-6 * np.abs(want).max())


@pytest.mark.parametrize(("name", "role", "tokens", "dim"), FORMS)
def test_encodes_as_its_codec(
    kernels: Library, name: str, role: Role, tokens: int, dim: int
) -> None:
    coder = _coder(name, kernels, role, tokens, dim)
    x = _tokens(tokens, dim)
    encoded = _reference(coder, x)
    records = _encode(coder, x)
    for part, array in coder.to_parts(records).items():
        got, want = np.asarray(array), np.asarray(encoded.parts[part])
        if part == "words":
            bits = coder.codec.code_bits
            codes = [np.asarray(unpack(mx.array(words), bits, dim)) for words in (got, want)]
            assert (codes[0] != codes[1]).mean() < 0.002  # ties
        else:
            near = np.abs(got.view(np.int16).astype(int) - want.view(np.int16)) <= 1
            assert near.mean() > 0.997
            # Where two clips cost the same, rounding chooses.
            np.testing.assert_allclose(got, want, rtol=0.1, atol=1e-3)
    got, want = coder.decode(records), _joined(coder.codec.decode(encoded))
    error, known = ((y - x).astype(np.float64) for y in (got, want))
    assert (error**2).mean() < 1.0005 * (known**2).mean() + 1e-12


@pytest.mark.parametrize(("tokens", "dim"), [(64, 64), (32, 80), (96, 96), (48, 128), (16, 256)])
@pytest.mark.parametrize("name", ["hkivi5", "kivi4", "hkivi3", "kivi2"])
def test_encodes_with_feedback_as_its_codec(
    kernels: Library, name: str, tokens: int, dim: int
) -> None:
    plain = codec(name, seed=7)
    assert isinstance(plain, ChannelAffineCodec)
    fed = plain.in_metric(metric(HEADS, dim))
    coder = CpuCodec.of(fed, tokens=tokens, heads=HEADS, dim=dim, role=Role.KEYS, kernels=kernels)
    assert coder is not None
    x = _tokens(tokens, dim)
    records, encoded = _encode(coder, x), _reference(coder, x)
    parts = coder.to_parts(records)
    alike = _codes(parts["words"], coder) == _codes(encoded.parts["words"], coder)
    # Of a block. A tie moves what is coded after it, but most blocks have none.
    assert (alike.mean(axis=(-2, -1)) == 1).mean() > 0.7
    assert alike.mean() > 0.97
    for part in ("scales", "zeros"):
        got, want = (np.asarray(each[part]).view(np.int16) for each in (parts, encoded.parts))
        assert (np.abs(got.astype(int) - want) <= 1).mean() > 0.9
    errors = (y - x for y in (coder.decode(records), _joined(fed.decode(encoded))))
    loss, known = (float((error**2).mean()) for error in errors)
    assert loss == pytest.approx(known, rel=0.02)


def _codes(words: mx.array, coder: CpuCodec) -> Array:
    return np.asarray(unpack(words, coder.codec.code_bits, coder.dim))


@pytest.mark.parametrize(
    "name",
    ["hkivi5", "turbo3u", "turbo2", "trellis4", "trellis3", "q8", "h3", "kivi2", "kvarn4", "f16"],
)
@pytest.mark.parametrize("role", Role)
def test_extremes(kernels: Library, name: str, role: Role) -> None:
    coder = _coder(name, kernels, role, 32, 64)
    zeros = np.zeros((BATCH, HEADS, BLOCKS * 32, 64), np.float32)
    assert (coder.decode(_encode(coder, zeros)) == 0).all()
    outlier = _tokens(32, 64)
    outlier[0, 1, 17, 3] = 3e4
    huge = (np.clip(_tokens(32, 64), -5, 5) * np.float32(6e37)).astype(np.float32)
    for x in (_tokens(32, 64) * 1e3, _tokens(32, 64) * 1e-4, _tokens(32, 64) * 1e-9, outlier, huge):
        got = coder.decode(_encode(coder, x))
        want = _joined(coder.codec.decode(_reference(coder, x)))
        assert np.isfinite(got).all()
        # Where float16 scales have few bits left, a tie moves more.
        tolerance = 0.02 * np.abs(want).max() + 1e-7
        # Of numbers that all count as the largest whole tokens tie.
        most = 0.2 if x is huge else 0.003
        assert (np.abs(got - want) > tolerance).mean() < most


@pytest.mark.parametrize("kind", [np.float16, np.uint16, np.float32])
def test_reads_views_of_any_element(kernels: Library, kind: type) -> None:
    coder = _coder("hkivi5", kernels, Role.KEYS, 16, 64)
    x = _tokens(16, 64)
    wide: Array = np.zeros((BATCH, HEADS + 1, BLOCKS * 16 + 9, 64), kind)
    if kind is np.uint16:
        stored = (x.view(np.uint32) >> 16).astype(np.uint16)
        x = (stored.astype(np.uint32) << 16).view(np.float32)
    else:
        stored = x.astype(kind)
        x = stored.astype(np.float32)
    view = wide[:, 1:, 4 : 4 + BLOCKS * 16]
    view[...] = stored
    np.testing.assert_array_equal(_encode(coder, view), _encode(coder, x))


@pytest.mark.parametrize("name", TAKEN)
def test_bytes_are_those_of_the_codec(kernels: Library, name: str) -> None:
    for role in Role:
        coder = _coder(name, kernels, role, 64, 128)
        assert coder.record_bytes == coder.codec.bits_per_element(64, 128) * 64 * 128 / 8


def test_what_the_kernels_do_not_take(kernels: Library) -> None:
    def of(name: str, tokens: int, dim: int, role: Role = Role.KEYS) -> CpuCodec | None:
        return CpuCodec.of(codec(name), tokens=tokens, heads=2, dim=dim, role=role, kernels=kernels)

    assert of("turbo3p", 64, 64) is None
    assert of("q4", 24, 64) is None
    assert of("q4", 64, 72) is None
    assert of("q4", 64, 80) is None  # groups of 40
    assert of("turbo3u", 48, 64, Role.VALUES) is None
    assert of("turbo3u", 48, 64) is not None
    assert of("turbo4u", 48, 64, Role.VALUES) is not None
    with pytest.raises(CacheError, match="head dimension 144"):
        of("h4", 64, 144)


def test_shapes_that_do_not_fit_are_refused(kernels: Library) -> None:
    coder = _coder("q4", kernels, Role.KEYS, 16, 64)
    records = np.zeros((BLOCKS, BATCH, HEADS, coder.record_bytes), np.uint8)
    with pytest.raises(CacheError, match=r"got tokens .* expected \(2, 3, 32, 64\)"):
        coder.encode(_tokens(32, 64), records)
    with pytest.raises(CacheError, match="for q4, expected uint8"):
        coder.decode(records[..., 1:])
    with pytest.raises(CacheError, match="got tokens of float64"):
        coder.encode(_tokens(16, 64).astype(np.float64), records)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("dim", [8, 24, 64, 136])
def test_codes_of_saved_words_are_those_that_were_packed(
    kernels: Library, bits: int, dim: int
) -> None:
    codes = np.random.default_rng(bits).integers(0, 2**bits, (3, 5, 7, dim), np.uint8)
    words = np.array(pack(mx.array(codes), bits))
    np.testing.assert_array_equal(kernels.codes(words, bits=bits, dim=dim), codes)
