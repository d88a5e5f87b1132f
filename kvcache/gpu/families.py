"""How the kernels name each codec: its structure in `kernels/codecs.h` and the parts it reads."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import mlx.core as mx

from kvcache.codecs import trellis
from kvcache.codecs.affine import ChannelAffineCodec, TokenAffineCodec, group_size
from kvcache.codecs.base import Codec
from kvcache.codecs.kvarn import KVarNCodec
from kvcache.codecs.lloyd_max import levels
from kvcache.codecs.turbo import TurboCodec
from kvcache.codecs.unencoded import UnencodedCodec
from kvcache.errors import CacheError
from kvcache.gpu.shape import RUN, check_dim

LEVELS = 32  # entries of the largest table, a lane's each


@dataclass(frozen=True, kw_only=True)
class Family:
    """structure: a C++ type in terms of D and M. parts: its members, in order.

    levels: of the codes, where they are numbers in a table, in the order that the kernels ask by.
    """

    structure: str
    parts: tuple[str, ...]
    levels: tuple[float, ...] = ()


def family_of(codec: Codec, dim: int) -> Family:
    """What reads `codec`. Raises CacheError where no kernel does."""
    bits = codec.code_bits
    check_dim(dim)
    match codec:
        case UnencodedCodec() if codec.dtype == mx.float16:
            return Family(structure="Unencoded<D, M>", parts=("values",))
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
            return Family(
                structure=f"Levels<{bits}, D, M>",
                parts=("words", "scales"),
                levels=tuple(levels(bits)),
            )
        case trellis.TrellisCodec():
            return Family(
                structure=f"Trellis<{bits}, D, M>",
                parts=("words", "scales"),
                levels=_by_code(trellis.levels(bits)),
            )
        case KVarNCodec():
            return Family(
                structure=f"KVarN<{bits}, D, M>",
                parts=("words", "token_scales", "channel_scales", "channel_means"),
            )
    as_held = f" as {str(codec.dtype).split('.')[-1]}" if isinstance(codec, UnencodedCodec) else ""
    raise CacheError(
        f"no GPU kernel reads codec {codec.name}{as_held} of head dimension {dim}; use another, "
        "such as hkivi4 or turbo4u, or `backend` reference"
    )


def _by_code(levels: tuple[float, ...]) -> tuple[float, ...]:
    """A trellis' levels by the code and then the bit that follows from others."""
    return tuple(levels[i & ~3 | (i & 1) << 1 | i >> 1 & 1] for i in range(len(levels)))


@lru_cache(maxsize=256)
def why_unread(codecs: tuple[Codec, ...], dim: int) -> str | None:
    """Why no kernel attends over blocks of these codecs, if there are any, and tokens of `dim`.

    None where the kernels do.
    """
    try:
        check_dim(dim)
        for codec in codecs:
            family_of(codec, dim)
    except CacheError as error:
        return str(error)
    return None


def level_table(families: Iterable[Family]) -> mx.array:
    """LEVELS of each family's codes, repeated to be so many, one after the other; float32."""
    rows = (family.levels or (0.0,) for family in families)
    return mx.array([row[i % len(row)] for row in rows for i in range(LEVELS)])
