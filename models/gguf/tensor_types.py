"""The ggml tensor types ember reads: their numbers, names and block sizes.

This module does not know how a block is laid out; see `models/native/blocks_*.h` for
that. Numbers and sizes are those of ggml's `ggml.h`.
"""

from enum import IntEnum


class TensorType(IntEnum):
    """A ggml tensor type that ember runs, under ggml's own number."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    BF16 = 30
    MXFP4 = 39

    @property
    def block_size(self) -> int:
        """Weights in one block; a row is a whole number of blocks."""
        return _BLOCKS[self][0]

    @property
    def block_bytes(self) -> int:
        """Bytes of one block in the file."""
        return _BLOCKS[self][1]


_BLOCKS: dict[TensorType, tuple[int, int]] = {
    TensorType.F32: (1, 4),
    TensorType.F16: (1, 2),
    TensorType.BF16: (1, 2),
    TensorType.Q4_0: (32, 18),
    TensorType.Q4_1: (32, 20),
    TensorType.Q5_0: (32, 22),
    TensorType.Q5_1: (32, 24),
    TensorType.Q8_0: (32, 34),
    TensorType.Q2_K: (256, 84),
    TensorType.Q3_K: (256, 110),
    TensorType.Q4_K: (256, 144),
    TensorType.Q5_K: (256, 176),
    TensorType.Q6_K: (256, 210),
    TensorType.IQ2_XXS: (256, 66),
    TensorType.IQ2_XS: (256, 74),
    TensorType.IQ2_S: (256, 82),
    TensorType.IQ3_XXS: (256, 98),
    TensorType.IQ3_S: (256, 110),
    TensorType.IQ4_NL: (32, 18),
    TensorType.IQ4_XS: (256, 136),
    TensorType.MXFP4: (32, 17),
}

_OTHER_NAMES = {
    9: "Q8_1",
    15: "Q8_K",
    19: "IQ1_S",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    40: "NVFP4",
    41: "Q1_0",
}


def describe_unsupported(number: int) -> str:
    """One clause for an error: which type it is and which ones would do."""
    name = _OTHER_NAMES.get(number, "an unknown tensor type")
    supported = ", ".join(kind.name for kind in TensorType)
    return f"{name} ({number}) is not supported; use a file with {supported}"
