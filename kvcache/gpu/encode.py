"""Blocks of unencoded tokens encoded by one launch: keys, values and all KV heads of a layer.

What it must equal, bit for bit, are the codecs' own MLX operations, which take some
250 launches. One launch for all layers would need their rings in one array: a kernel
takes 31 buffers, and each layer has rings of its own, written one after the other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise

import mlx.core as mx
import numpy as np

from kvcache.codecs import kvarn, trellis, turbo
from kvcache.codecs.affine import FEEDBACK_SPANS, ChannelAffineCodec, TokenAffineCodec, group_size
from kvcache.codecs.base import ArraySpec, Codec, Encoded
from kvcache.codecs.lloyd_max import levels
from kvcache.codecs.rotation import hadamard_factor
from kvcache.gpu.arguments import MACROS, Argument, float_bits, pack_arguments
from kvcache.gpu.families import LEVELS, family_of
from kvcache.gpu.hadamard import part_words
from kvcache.gpu.kernel import Call, Constant, Kernel, Launcher, launch_on_device
from kvcache.gpu.shape import RUN, TILE, ceil_div
from kvcache.snapshot import Tokens

Codecs = tuple[Codec, Codec]

_SIMDGROUPS = 6  # of a threadgroup: one for each clip that is tried, or group of channels
_MOST_SIMDGROUPS = 8
_OWN = 64  # numbers that a thread keeps, at most, where a block lies in registers
_WIDE_DIM = TILE * _SIMDGROUPS  # with more channels a tile has half as many tokens
_MOST_SHARED = 32 * 1024  # bytes of threadgroup memory, Metal's limit
_HEADERS = ("packing.h", "leaving.h", "encoders.h", "encode_kvarn.h")
_FEEDBACK_HEADER, _TRELLIS_HEADER = "encode_feedback.h", "encode_trellis.h"
_CLIPS = 8  # at most; numbers of a codec: levels, the middles between them, clips


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
    """What writes a codec, the same for all layers: its structure in encoders.h and its parts.

    tiled: whether several threadgroups share a block. scratch: floats of threadgroup
    memory beside the tokens. numbers: its table. feedback: whether it reads the codec's.
    header: that others do not need. held, threads: tokens in threadgroup memory and threads
    of a threadgroup that it takes at least.
    """

    structure: str
    parts: tuple[str, ...]
    rotated: bool
    feedback: bool = False
    header: str | None = None
    held: int = 0
    threads: int = 0
    tiled: bool = True
    scratch: int = 1
    numbers: tuple[float, ...] = (0.0,) * (2 * LEVELS + _CLIPS)

    def outputs(self, side: str) -> tuple[str, ...]:
        """The parts as the text names them."""
        return tuple(f"{side}_{part}" for part in self.parts)

    def feedback_of(self, side: str) -> tuple[str, ...]:
        """The inputs that have it, of each KV head: an order [D], weights [D, D]."""
        return (f"{side}_order", f"{side}_weights") if self.feedback else ()

    def macros(self, side: str) -> tuple[tuple[str, str], ...]:
        """The structure, and what to make it of."""
        of_head = zip(self.feedback_of(side), ("D", "D * D"), strict=False)
        read = (f"{name} + kv_head * {size}" for name, size in of_head)
        members = ", ".join((*self.outputs(side), *read))
        return (f"{side.upper()}S", self.structure), (f"{side.upper()}_PARTS", members)


@dataclass(frozen=True, kw_only=True)
class TierEncoder:
    """Runs the kernel. launch: may be another than the device's, for tests."""

    launch: Launcher = launch_on_device

    def encode(self, codecs: Codecs, tokens: Leaving) -> tuple[Encoded, Encoded]:
        """Keys and values, parts [blocks, B, Hkv, ...], of codecs that `encodes` allows.

        Raises CacheError for a codec or head dimension that no kernel reads.
        """
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
        made = _kernel(*_encoders(codecs, tokens.block, dim), tokens.block, dim)
        threads = TILE * made.simdgroups
        tiles = ceil_div(tokens.block, _tile(dim)) if made.tiled else 1
        outputs = self.launch(
            Call(
                kernel=made.kernel,
                inputs=[
                    *(*ring, *new),
                    *(_signs(codec, heads, dim) for codec in codecs),
                    *(part_words(factor), made.numbers, pack_arguments(numbers)),
                    *(array for codec in codecs for array in _feedback(codec)),
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
    """Whether the kernel writes blocks of codecs that kernels read: all but some of the largest."""
    encoders = _encoders(codecs, block, dim)
    shared = _shared_bytes(encoders, _least_held(encoders, dim), dim)
    return shared <= _MOST_SHARED and _simdgroups(encoders, dim) <= _MOST_SIMDGROUPS


@dataclass(frozen=True, kw_only=True)
class _EncodeKernel:
    kernel: Kernel
    constants: Mapping[str, Constant]
    numbers: mx.array
    tiled: bool
    simdgroups: int


@lru_cache(maxsize=64)
def _kernel(keys: _Encoder, values: _Encoder, block: int, dim: int) -> _EncodeKernel:
    encoders = keys, values
    sides = tuple(zip(("key", "value"), encoders, strict=True))
    feedback = tuple(name for side, each in sides for name in each.feedback_of(side))
    kernel = Kernel.load(
        "encode",
        headers=(*_HEADERS, *dict.fromkeys(each.header for each in encoders if each.header)),
        inputs=(
            *("ring_keys", "ring_values", "new_keys", "new_values"),
            *("key_signs", "value_signs", "minuses", "numbers", "args"),
            *feedback,
        ),
        outputs=tuple(name for side, each in sides for name in each.outputs(side)),
        macros=(*MACROS, *(macro for side, each in sides for macro in each.macros(side))),
    )
    constants = {
        "D": dim,
        "M": block,
        "HELD": _held(encoders, block, dim),
        "KEY_ROTATED": keys.rotated,
        "VALUE_ROTATED": values.rotated,
        "TILE": _tile(dim),
        "SIMDGROUPS": _simdgroups(encoders, dim),
    }
    return _EncodeKernel(
        kernel=kernel,
        constants=constants,
        numbers=mx.array([number for each in encoders for number in each.numbers]),
        tiled=any(each.tiled for each in encoders),
        simdgroups=_simdgroups(encoders, dim),
    )


def _encoders(codecs: Codecs, block: int, dim: int) -> tuple[_Encoder, _Encoder]:
    """Raises CacheError for a codec or head dimension that no kernel reads."""
    keys, values = (
        _encoder(codec, block, dim, feedback=bool(_feedback(codec))) for codec in codecs
    )
    return keys, values


@lru_cache(maxsize=256)
def _encoder(codec: Codec, block: int, dim: int, *, feedback: bool) -> _Encoder:
    made = partial(_Encoder, parts=family_of(codec, dim).parts, rotated=codec.rotation is not None)
    bits = codec.code_bits
    match codec:
        case TokenAffineCodec():
            group = group_size(dim)
            return made(structure=f"TokenAffineEncoder<{bits}, D, M, {group}, SIMDGROUPS>")
        case ChannelAffineCodec() if feedback:
            return made(
                structure=f"FeedbackEncoder<{bits}, D, M, SIMDGROUPS>",
                tiled=False,
                scratch=2 * (RUN + 1) * ceil_div(block, 4) * 4,
                numbers=_table((FEEDBACK_SPANS[bits] / (2**bits - 1),), ()),
                feedback=True,
                header=_FEEDBACK_HEADER,
                held=ceil_div(block * dim, 4 * (dim + 1)),  # codes take their place, a byte each
                threads=block * max(2, ceil_div(dim, _OWN)),
            )
        case ChannelAffineCodec():
            return made(structure=f"ChannelAffineEncoder<{bits}, D, M, SIMDGROUPS>", tiled=False)
        case trellis.TrellisCodec():
            count = len(turbo.CLIPS)
            chunks = ceil_div(dim, TILE)
            return made(
                structure=f"TrellisEncoder<{bits}, D, M, {count}, SIMDGROUPS>",
                scratch=_MOST_SIMDGROUPS * TILE * (trellis.SUBSETS + chunks),
                numbers=_trellis_table(bits),
                header=_TRELLIS_HEADER,
            )
        case turbo.TurboCodec():
            clips = turbo.CLIPS if isinstance(codec, turbo.FittedTurboCodec) else ()
            return made(
                structure=f"LevelsEncoder<{bits}, D, M, {len(clips)}, SIMDGROUPS>",
                scratch=max(1, TILE * len(clips)),
                numbers=_table(levels(bits), clips),
            )
        case kvarn.KVarNCodec():
            count = len(kvarn.CLIPS)
            return made(
                structure=f"KVarNEncoder<{bits}, D, M, {count}, SIMDGROUPS>",
                tiled=False,
                scratch=3 * block + 6 * dim + TILE * count + _MOST_SIMDGROUPS,
                numbers=_table((), kvarn.CLIPS),
            )
        case _:
            return made(structure="UnencodedEncoder<D, M, SIMDGROUPS>")


def _table(of_levels: tuple[float, ...], clips: tuple[float, ...]) -> tuple[float, ...]:
    """Levels, the middles between them and clips, each padded to its room."""
    return _rooms(of_levels, tuple((low + high) / 2 for low, high in pairwise(of_levels)), clips)


def _trellis_table(bits: int) -> tuple[float, ...]:
    """The same of a trellis, whose middles are those of each subset."""
    table = np.array(trellis.levels(bits), np.float32)
    middles = (table[trellis.SUBSETS :] + table[: -trellis.SUBSETS]) / 2
    return _rooms(tuple(table.tolist()), tuple(middles.tolist()), turbo.CLIPS)


def _rooms(
    of_levels: tuple[float, ...], middles: tuple[float, ...], clips: tuple[float, ...]
) -> tuple[float, ...]:
    rooms = (of_levels, LEVELS), (middles, LEVELS), (clips, _CLIPS)
    return tuple(number for row, room in rooms for number in (*row, *[0.0] * (room - len(row))))


def _shared_bytes(encoders: Sequence[_Encoder], held: int, dim: int) -> int:
    return 4 * (held * (dim + 1) + max(each.scratch for each in encoders))


def _held(encoders: Sequence[_Encoder], block: int, dim: int) -> int:
    """Tokens that a threadgroup holds at a time: a tile, or the block where that saves loads."""
    least = _least_held(encoders, dim)
    whole = max(block, least)
    if all(each.tiled for each in encoders) or _shared_bytes(encoders, whole, dim) > _MOST_SHARED:
        return least
    return whole


def _tile(dim: int) -> int:
    """Tokens of a threadgroup, where it does not have the block."""
    return TILE if dim <= _WIDE_DIM else TILE // 2


def _least_held(encoders: Sequence[_Encoder], dim: int) -> int:
    return max(_tile(dim), *(each.held for each in encoders))


def _simdgroups(encoders: Sequence[_Encoder], dim: int) -> int:
    """Of a threadgroup: a thread for each channel, and as many as an encoder takes."""
    return max(_SIMDGROUPS, ceil_div(max(dim, *(each.threads for each in encoders)), TILE))


def _feedback(codec: Codec) -> tuple[mx.array, ...]:
    """The order and the weights of a codec that has some."""
    found = codec.feedback if isinstance(codec, ChannelAffineCodec) else None
    return () if found is None else (found.order, found.weights)


def _signs(codec: Codec, heads: int, dim: int) -> mx.array:
    """The signs [Hkv, D] of a rotation; not read where there is none."""
    basis = codec.basis(heads, dim)
    return _no_signs(heads, dim) if basis is None else basis.signs


@lru_cache
def _no_signs(heads: int, dim: int) -> mx.array:
    return mx.ones((heads, dim))
