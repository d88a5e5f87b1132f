"""The run-time numbers of the kernels: one int32 array, named alike in Python and in the text."""

import struct
from collections.abc import Mapping, Sequence
from enum import IntEnum, auto
from functools import lru_cache

import mlx.core as mx


class Argument(IntEnum):
    """Index of each number; the kernels see ARG_<name>."""

    @staticmethod
    def _generate_next_value_(name: str, start: int, count: int, last_values: list[int]) -> int:
        return count

    ROWS = auto()  # query rows of one KV head: G * L
    QUERIES = auto()  # L
    HEADS = auto()  # B * Hkv
    KV_HEADS = auto()  # Hkv
    SPANS = auto()  # spans of this launch
    SCALE = auto()  # of scores, in units of log2, or of a rotation; the bits of a float32
    POSITION = auto()  # of the first query
    # cold
    COLD_POSITION = auto()  # of the oldest token
    BLOCKS = auto()
    SLOTS = auto()
    FIRST_SLOT = auto()
    START_0 = auto()  # first slot of each segment that the launch reads
    START_1 = auto()
    START_2 = auto()
    START_3 = auto()
    START_4 = auto()
    START_5 = auto()
    START_6 = auto()
    START_7 = auto()
    STOP = auto()  # first slot after them
    # expand
    FIRST_HEAD = auto()
    HEADS_TAKEN = auto()
    ROOM = auto()  # tokens of each head that the output has
    # unencoded
    PINNED = auto()
    PINNED_ROOM = auto()
    PINNED_SPANS = auto()
    HOT = auto()
    HOT_START = auto()
    HOT_POSITION = auto()
    RING = auto()
    NEW = auto()
    NEW_POSITION = auto()
    PAIRS = auto()  # of channels that turn for pinned tokens
    APART = auto()  # from the first channel of a pair to the second
    # merge
    COLD_SPANS = auto()
    UNENCODED_SPANS = auto()
    # encode
    NUMBER = auto()  # of the first token
    END = auto()  # of the numbers in the ring
    CAPACITY = auto()  # of the ring
    # of all that look at a window; the last one
    LOWEST = auto()  # position that the first query sees; the other queries' follow


MACROS: tuple[tuple[str, str | int], ...] = tuple(
    (f"ARG_{argument.name}", argument.value) for argument in Argument
)


def pack_arguments(values: Mapping[Argument, int], lowest: Sequence[int] = (0,)) -> mx.array:
    """int32: a number for each Argument, 0 if not given, and `lowest` in the last one's place."""
    numbers = [0] * Argument.LOWEST
    for argument, value in values.items():
        numbers[argument] = value
    return _array((*numbers, *lowest))


@lru_cache(maxsize=64)
def _array(numbers: tuple[int, ...]) -> mx.array:
    """The layers of a model mostly ask for the same."""
    return mx.array(numbers, mx.int32)


def float_bits(value: float) -> int:
    """The float32 `value` as the int32 of the same bits."""
    bits: int = struct.unpack("<i", struct.pack("<f", value))[0]
    return bits
