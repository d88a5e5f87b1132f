"""The run-time numbers of the kernels: one int32 array, named alike in Python and in the text."""

import struct
from collections.abc import Mapping
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
    SCALE = auto()  # of scores, in units of log2; the bits of a float32
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
    STOP = auto()  # first slot after them
    # expand
    FIRST_HEAD = auto()
    HEADS_TAKEN = auto()
    ROOM = auto()  # tokens of each head that the output has
    # dense
    PINNED = auto()
    PINNED_ROOM = auto()
    PINNED_SPANS = auto()
    HOT = auto()
    HOT_START = auto()
    HOT_POSITION = auto()
    RING = auto()
    NEW = auto()
    NEW_POSITION = auto()
    # merge
    COLD_SPANS = auto()
    DENSE_SPANS = auto()


MACROS: tuple[tuple[str, str | int], ...] = tuple(
    (f"ARG_{argument.name}", argument.value) for argument in Argument
)


def pack_arguments(values: Mapping[Argument, int]) -> mx.array:
    """int32 [len(Argument)]; what is not given is 0."""
    numbers = [0] * len(MACROS)
    for argument, value in values.items():
        numbers[argument] = value
    return _array(tuple(numbers))


@lru_cache(maxsize=64)
def _array(numbers: tuple[int, ...]) -> mx.array:
    """The layers of a model mostly ask for the same."""
    return mx.array(numbers, mx.int32)


def float_bits(value: float) -> int:
    """The float32 `value` as the int32 of the same bits."""
    bits: int = struct.unpack("<i", struct.pack("<f", value))[0]
    return bits
