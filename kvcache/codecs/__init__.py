"""How a block of tokens of one tensor, keys or values, is encoded.

A codec turns [B, Hkv, M, D] into a few small arrays of fixed shape and back. It
knows no cache, no positions and no attention.
"""

from kvcache.codecs.base import ArraySpec, Codec, Encoded
from kvcache.codecs.names import NAMES, codec, parse_pair

__all__ = ["NAMES", "ArraySpec", "Codec", "Encoded", "codec", "parse_pair"]
