"""Blocks of unencoded tokens encoded by one launch: keys, values and all KV heads of a layer.

What it must equal, bit for bit, are the codecs' own MLX operations, which take some
250 launches. One launch for all layers would need their rings in one array: a kernel
takes 31 buffers, and each layer has rings of its own, written one after the other.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import mlx.core as mx
import numpy as np

from kvcache.codecs import kvarn, turbo
from kvcache.codecs.affine import ChannelAffineCodec, TokenAffineCodec, group_size
from kvcache.codecs.base import ArraySpec, Codec, Encoded
from kvcache.codecs.lloyd_max import levels
from kvcache.codecs.rotation import hadamard_factor
from kvcache.codecs.unencoded import UnencodedCodec
from kvcache.gpu.arguments import MACROS, Argument, float_bits, pack_arguments
from kvcache.gpu.families import family_of
from kvcache.gpu.kernel import Call, Constant, Kernel, Launcher, launch_on_device
from kvcache.gpu.shape import TILE, ceil_div
from kvcache.snapshot import Tokens

Codecs = tuple[Codec, Codec]

_SIMDGROUPS = 6  # of a threadgroup: one for each clip that is tried, or group of channels
_MOST_SHARED = 32 * 1024  # bytes of threadgroup memory, Metal's limit
_HEADERS = ("packing.h", "leaving.h", "encoders.h", "encode_kvarn.h")
_LEVELS, _CLIPS = 16, 8  # numbers of a codec: levels, the middles between them, clips
_LEAST_SIZE = 8  # MLX puts smaller inputs into constant memory, another kind of pointer


@dataclass(frozen=True, kw_only=True)
class Leaving:
    """Tokens of whole blocks, where they lie before they are encoded.

    number: of the first of them. blocks: how many, of `block` tokens each.
    new: [B, Hkv, L, D], the token of number `end` and those after it.
    ring: those before, number u at u mod capacity. None of either where no block reaches it.
    """

    blocks: int
    block: int
    new: Tokens[mx.array] | None
    number: int = 0
    ring: Tokens[mx.array] | None = None
    capacity: int = 1
    end: int = 0


@dataclass(frozen=True, kw_only=True)
class _Encoder:
    """What writes a codec: its structure in encoders.h, by the block and D.

    tiled: whether several threadgroups share a block. scratch: floats of threadgroup
    memory beside the tokens. numbers: its table.
    """

    structure: str
    tiled: bool = True
    scratch: int = 1
    numbers: tuple[float, ...] = (0.0,) * (2 * _LEVELS + _CLIPS)


@dataclass(frozen=True, kw_only=True)
class TierEncoder:
    """Runs the kernel. launch: may be another than the device's, for tests."""

    launch: Launcher = launch_on_device

    def encode(self, codecs: Codecs, tokens: Leaving) -> tuple[Encoded, Encoded]:
        """Keys and values, parts [blocks, B, Hkv, ...], of codecs that `encodes` them."""
        ring, new = tokens.ring or tokens.new, tokens.new or tokens.ring
        assert ring, "no tokens to encode"
        assert new
        batch, heads, _, dim = ring.keys.shape
        factor = hadamard_factor(dim) or 1
        numbers = {
            Argument.HEADS: batch * heads,
            Argument.KV_HEADS: heads,
            Argument.SCALE: float_bits(dim**-0.5),
            Argument.RING: ring.length,
            Argument.NEW: new.length,
            Argument.NUMBER: tokens.number,
            Argument.END: tokens.end,
            Argument.CAPACITY: tokens.capacity,
        }
        specs = [codec.shapes(tokens.block, dim) for codec in codecs]
        arrays: list[ArraySpec] = [spec for each in specs for spec in each.values()]
        made = _kernel(codecs, tokens.block, dim)
        threads = TILE * _SIMDGROUPS
        tiles = ceil_div(tokens.block, TILE) if made.tiled else 1
        outputs = self.launch(
            Call(
                kernel=made.kernel,
                inputs=[
                    *(*ring, *new),
                    *(_signs(codec, heads, dim) for codec in codecs),
                    *(_minuses(factor), made.numbers, pack_arguments(numbers)),
                ],
                constants={**made.constants, "FACTOR": factor, "HOT": ring.keys.dtype},
                grid=(threads * tiles, batch * heads, 2 * tokens.blocks),
                threadgroup=(threads, 1, 1),
                shapes=[(tokens.blocks, batch, heads, *spec.shape) for spec in arrays],
                dtypes=[spec.dtype for spec in arrays],
            )
        )
        parts = iter(outputs)
        keys, values = (
            Encoded(parts={name: next(parts) for name in each}, dim=dim) for each in specs
        )
        return keys, values


def encodes(codecs: Codecs, block: int, dim: int) -> bool:
    """Whether the kernel writes blocks of codecs that kernels read: all but kvarn's largest."""
    encoders = [_encoder(codec, block, dim) for codec in codecs]
    return _shared_bytes(encoders, TILE, dim) <= _MOST_SHARED


@dataclass(frozen=True, kw_only=True)
class _EncodeKernel:
    kernel: Kernel
    constants: Mapping[str, Constant]
    numbers: mx.array
    tiled: bool


@lru_cache(maxsize=64)
def _kernel(codecs: Codecs, block: int, dim: int) -> _EncodeKernel:
    """The kernel that writes blocks of these codecs, the same text for all layers."""
    encoders = [_encoder(codec, block, dim) for codec in codecs]
    parts = [
        tuple(f"{name}_{part}" for part in family_of(codec, dim).parts)
        for name, codec in zip(("key", "value"), codecs, strict=True)
    ]
    structures = (
        *(("KEYS", encoders[0].structure), ("KEY_PARTS", ", ".join(parts[0]))),
        *(("VALUES", encoders[1].structure), ("VALUE_PARTS", ", ".join(parts[1]))),
    )
    kernel = Kernel.load(
        "encode",
        headers=_HEADERS,
        inputs=(
            *("ring_keys", "ring_values", "new_keys", "new_values"),
            *("key_signs", "value_signs", "minuses", "numbers", "args"),
        ),
        outputs=(*parts[0], *parts[1]),
        macros=(*MACROS, *structures),
    )
    constants = {
        "D": dim,
        "M": block,
        "HELD": _held(encoders, block, dim),
        "KEY_ROTATED": codecs[0].rotation is not None,
        "VALUE_ROTATED": codecs[1].rotation is not None,
        "SIMDGROUPS": _SIMDGROUPS,
    }
    return _EncodeKernel(
        kernel=kernel,
        constants=constants,
        numbers=mx.array([number for each in encoders for number in each.numbers]),
        tiled=any(each.tiled for each in encoders),
    )


def _encoder(codec: Codec, block: int, dim: int) -> _Encoder:
    """Of a codec that `family_of` knows."""
    bits = codec.code_bits
    match codec:
        case TokenAffineCodec():
            group = group_size(dim)
            return _Encoder(structure=f"TokenAffineEncoder<{bits}, D, M, {group}, SIMDGROUPS>")
        case ChannelAffineCodec():
            return _Encoder(
                structure=f"ChannelAffineEncoder<{bits}, D, M, SIMDGROUPS>", tiled=False
            )
        case turbo.FittedTurboCodec():
            clips = len(turbo.CLIPS)
            return _Encoder(
                structure=f"LevelsEncoder<{bits}, D, M, {clips}, SIMDGROUPS>",
                scratch=TILE * clips,
                numbers=_table(levels(bits), turbo.CLIPS),
            )
        case turbo.TurboCodec():
            return _Encoder(
                structure=f"LevelsEncoder<{bits}, D, M, 0, SIMDGROUPS>",
                numbers=_table(levels(bits), ()),
            )
        case kvarn.KVarNCodec():
            clips = len(kvarn.CLIPS)
            return _Encoder(
                structure=f"KVarNEncoder<{bits}, D, M, {clips}, SIMDGROUPS>",
                tiled=False,
                scratch=3 * block + 6 * dim + TILE * clips + _SIMDGROUPS,
                numbers=_table((), kvarn.CLIPS),
            )
        case UnencodedCodec():
            return _Encoder(structure="PlainEncoder<D, M, SIMDGROUPS>")
    raise AssertionError(f"no kernel writes {codec.name}")


def _table(of_levels: tuple[float, ...], clips: tuple[float, ...]) -> tuple[float, ...]:
    """Levels, the middles between them and clips, each padded to its room."""
    middles = tuple((low + high) / 2 for low, high in pairwise(of_levels))
    rooms = (of_levels, _LEVELS), (middles, _LEVELS), (clips, _CLIPS)
    return tuple(number for row, room in rooms for number in (*row, *[0.0] * (room - len(row))))


def _shared_bytes(encoders: list[_Encoder], held: int, dim: int) -> int:
    return 4 * (held * (dim + 1) + max(each.scratch for each in encoders))


def _held(encoders: list[_Encoder], block: int, dim: int) -> int:
    """Tokens that a threadgroup holds at a time: a tile, or the block where that saves loads."""
    whole = max(block, TILE)
    if all(each.tiled for each in encoders) or _shared_bytes(encoders, whole, dim) > _MOST_SHARED:
        return TILE
    return whole


def _signs(codec: Codec, heads: int, dim: int) -> mx.array:
    """The signs [Hkv, D] of a rotation; not read where there is none."""
    basis = codec.basis(heads, dim)
    return _no_signs(heads, dim) if basis is None else basis.signs


@lru_cache
def _no_signs(heads: int, dim: int) -> mx.array:
    return mx.ones((heads, dim))


@lru_cache
def _minuses(factor: int) -> mx.array:
    """Of each row of MLX's Hadamard matrix of a factor, the columns that are -1, as bits; uint32.

    MLX transforms no vector of the bare factor, so it is seen in one twice as long.
    """
    matrix = np.array(mx.hadamard_transform(mx.eye(2 * factor)))[::2, ::2].T
    minuses = [sum(1 << int(k) for k in np.flatnonzero(row < 0)) for row in matrix]
    return mx.array([*minuses, *[0] * (_LEAST_SIZE - factor)], mx.uint32)
