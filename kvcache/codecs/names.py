"""The names of the codecs, as `--kv` takes them."""

import difflib
import re
from collections.abc import Callable

from kvcache.codecs.affine import ChannelAffineCodec, TokenAffineCodec
from kvcache.codecs.base import Codec
from kvcache.codecs.kvarn import KVarNCodec
from kvcache.codecs.rotation import SignedHadamard
from kvcache.codecs.trellis import TrellisCodec
from kvcache.codecs.turbo import FittedTurboCodec, TurboCodec, TurboProdCodec
from kvcache.codecs.unencoded import UnencodedCodec
from kvcache.errors import CacheError, quoted
from kvcache.given import integer, refused

_Maker = Callable[[str, int, int], Codec]


def _turbo_prod(name: str, bits: int, seed: int) -> Codec:
    return TurboProdCodec(
        name=name,
        code_bits=bits - 1,
        rotation=SignedHadamard(seed=seed),
        projection=SignedHadamard(seed=seed, rounds=2, purpose="projection"),
    )


def _as_given(kind: type[Codec]) -> _Maker:
    return lambda name, bits, _seed: kind(name=name, code_bits=bits)


def _rotated(kind: type[Codec]) -> _Maker:
    return lambda name, bits, seed: kind(
        name=name, code_bits=bits, rotation=SignedHadamard(seed=seed)
    )


_FAMILIES: tuple[tuple[str, tuple[int, ...], _Maker], ...] = (
    ("f{}", (16,), _as_given(UnencodedCodec)),
    ("q{}", (8, 6, 5, 4, 3, 2), _as_given(TokenAffineCodec)),
    ("h{}", (8, 6, 5, 4, 3, 2), _rotated(TokenAffineCodec)),
    ("turbo{}", (4, 3, 2), _rotated(TurboCodec)),
    ("turbo{}u", (4, 3, 2), _rotated(FittedTurboCodec)),
    ("turbo{}p", (4, 3, 2), _turbo_prod),
    ("trellis{}", (4, 3, 2), _rotated(TrellisCodec)),
    ("kivi{}", (5, 4, 3, 2), _as_given(ChannelAffineCodec)),
    ("hkivi{}", (5, 4, 3, 2), _rotated(ChannelAffineCodec)),
    ("kvarn{}", (8, 6, 5, 4, 3, 2), _rotated(KVarNCodec)),
)
_MAKERS = {
    pattern.format(bits): (maker, bits) for pattern, widths, maker in _FAMILIES for bits in widths
}
NAMES = tuple(_MAKERS)
_MOST_BITS = 16
# Families whose numbers stand in a table, which kernels hold in registers.
_LOOKED_UP = ("turbo", "trellis")


def codec(name: str, *, seed: int = 0) -> Codec:
    """The codec called `name`; `seed`, the layer, draws its rotation if it has one.

    Raises CacheError for an unknown name.
    """
    if not isinstance(name, str):
        raise refused("name", name, f"one of {', '.join(NAMES)}")
    integer("seed", seed)
    if name not in _MAKERS:
        close = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        told = _other_bits(name) or f"expected one of {', '.join(NAMES)}"
        raise CacheError(f"got codec {quoted(name)}, {told}{hint}")
    maker, bits = _MAKERS[name]
    return maker(name, bits, seed)


def _other_bits(name: str) -> str:
    """What is said of a family that has not so many bits; nothing for no family."""
    parts = re.fullmatch(r"([a-z]+)(\d+)([a-z]?)", name)
    pattern = f"{parts[1]}{{}}{parts[3]}" if parts else ""
    widths = next((each for family, each, _ in _FAMILIES if family == pattern), ())
    if parts is None or not widths or int(parts[2]) > _MOST_BITS:
        return ""
    few = f"expected {pattern.format('N')} of {', '.join(map(str, sorted(widths)))} bits"
    why = ", as many levels as kernels look up" if parts[1] in _LOOKED_UP else ""
    others = [each for each, (_, bits) in _MAKERS.items() if bits == int(parts[2])]
    return f"{few}{why}" + (f", or for {parts[2]} bits {', '.join(others)}" if others else "")


def parted(text: str) -> tuple[str, str]:
    """The names of keys' and values' codecs in "K/V", such as kvarn4/q3; one name means both.

    Raises CacheError for more than two.
    """
    names = text.split("/")
    if len(names) > 2:
        raise CacheError(f"got {text!r}, expected one codec or KEYS/VALUES, such as kvarn4/q3")
    return names[0], names[-1]


def parse_pair(text: str, *, seed: int = 0) -> tuple[Codec, Codec]:
    """The codecs of keys and values that `parted` names.

    Raises CacheError for an unknown name or more than two.
    """
    keys, values = parted(text)
    return codec(keys, seed=seed), codec(values, seed=seed)
