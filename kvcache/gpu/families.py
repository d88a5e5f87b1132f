"""How the kernels name each codec: its structure in `kernels/codecs.h` and the parts it reads."""

from dataclasses import dataclass

import mlx.core as mx

from kvcache.codecs.affine import ChannelAffineCodec, TokenAffineCodec, group_size
from kvcache.codecs.base import Codec
from kvcache.codecs.kvarn import KVarNCodec
from kvcache.codecs.lloyd_max import levels
from kvcache.codecs.plain import PlainCodec
from kvcache.codecs.turbo import TurboCodec
from kvcache.errors import CacheError
from kvcache.gpu.shape import RUN

LEVELS = 16  # entries of the largest table
LARGEST_DIM = 128  # so that a threadgroup's staged values fit its memory


@dataclass(frozen=True, kw_only=True)
class Family:
    """structure: a C++ type in terms of D and M. parts: its members, in order."""

    structure: str
    parts: tuple[str, ...]


def family_of(codec: Codec, dim: int) -> Family:
    """What reads `codec`. Raises CacheError where no kernel does."""
    bits = codec.code_bits
    if dim > LARGEST_DIM:
        raise CacheError(
            f"got head dimension {dim}, but the GPU kernels read encoded blocks of up to "
            f"{LARGEST_DIM}; use --backend reference"
        )
    match codec:
        case PlainCodec():
            return Family(structure="Plain<D, M>", parts=("values",))
        case TokenAffineCodec() if group_size(dim) % RUN == 0:
            return Family(
                structure=f"TokenAffine<{bits}, D, M, {group_size(dim)}>",
                parts=("words", "scales", "zeros"),
            )
        case ChannelAffineCodec():
            return Family(
                structure=f"ChannelAffine<{bits}, D, M>", parts=("words", "scales", "zeros")
            )
        case TurboCodec():
            return Family(structure=f"Levels<{bits}, D, M>", parts=("words", "scales"))
        case KVarNCodec():
            return Family(
                structure=f"KVarN<{bits}, D, M>",
                parts=("words", "token_scales", "channel_scales", "channel_means"),
            )
    raise CacheError(
        f"no GPU kernel reads codec {codec.name} of head dimension {dim}; use another, "
        "such as hkivi5 or turbo3u, or --backend reference"
    )


def level_table(*codecs: Codec) -> mx.array:
    """The levels of each codec's codes, padded to LEVELS, one after the other; float32."""
    rows = [levels(each.code_bits) if isinstance(each, TurboCodec) else () for each in codecs]
    return mx.array([level for row in rows for level in (*row, *[0.0] * (LEVELS - len(row)))])
