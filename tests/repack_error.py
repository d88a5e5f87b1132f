"""What repacking adds to each type's own error, as a Markdown table.

    python -m tests.repack_error

Gaussian weights, quantized by llama.cpp's quantizers (libgguf); errors are
|x (W' - W)| / |x W| over Gaussian x, W as gguf-py dequantizes it for what
repacking adds, and the unquantized weights for what the type itself lost.
"""

from dataclasses import dataclass

import gguf
import mlx.core as mx
import numpy as np
import numpy.typing as npt

from models.gguf.header import TensorInfo
from models.gguf.repack import Unquantized, repack, stored_bits
from models.gguf.tensor_types import TensorType
from tests.gguf_factory import quantize

_HOW = {
    TensorType.F32: "as it is",
    TensorType.F16: "as it is",
    TensorType.BF16: "as it is",
    TensorType.Q4_0: "exact, bias -8d",
    TensorType.Q4_1: "exact, bias m",
    TensorType.Q5_0: "exact, bias -16d",
    TensorType.Q5_1: "exact, bias m",
    TensorType.Q8_0: "exact, bias -128d",
    TensorType.Q2_K: "both sub-blocks rounded to one grid over their range",
    TensorType.Q3_K: "sub-block of larger scale exact, other rounded to 1/4 of its step",
    TensorType.Q4_K: "codes exact, d\\*s and dmin\\*m rounded to f16",
    TensorType.Q5_K: "codes exact, d\\*s and dmin\\*m rounded to f16",
    TensorType.Q6_K: "sub-block of larger scale exact, other rounded to 1/4 of its step",
    TensorType.IQ4_NL: "exact, codes are the codebook's values",
    TensorType.IQ4_XS: "codes are the codebook's values, d\\*s rounded to f16",
}

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class AddedError:
    """Relative output errors: of repacking, and of the type itself."""

    output: float
    own: float


def added_error(kind: TensorType, *, rows: int = 131, columns: int = 2048) -> AddedError:
    """Measure one type on Gaussian weights."""
    rng = np.random.default_rng(7)
    weights = rng.standard_normal((rows, columns), np.float32) / np.float32(np.sqrt(columns))
    x = rng.standard_normal((61, columns), np.float32)
    data = quantize(weights, kind)
    held = gguf.quants.dequantize(data, gguf.GGMLQuantizationType(int(kind)))
    info = TensorInfo(name="w", shape=(rows, columns), type=kind, offset=0, nbytes=data.nbytes)
    got = _weights(info, data)
    return AddedError(output=_relative(x, got, held), own=_relative(x, held, weights))


def _weights(info: TensorInfo, data: npt.NDArray[np.uint8]) -> Floats:
    packed = repack(info, data)
    if isinstance(packed, Unquantized):
        return np.asarray(packed.array.astype(mx.float32))
    scales, biases = packed.scales.astype(mx.float32), packed.biases.astype(mx.float32)
    return np.asarray(
        mx.dequantize(packed.weight, scales, biases, group_size=packed.group_size, bits=packed.bits)
    )


def _relative(x: Floats, got: Floats, expected: Floats) -> float:
    return float(np.linalg.norm(x @ (got - expected).T) / np.linalg.norm(x @ expected.T))


def main() -> None:
    """Print the table."""
    print("| type | bits in the file | code bits | bits stored | how | error added | own error |")
    print("|---|---|---|---|---|---|---|")
    for kind in TensorType:
        bits = stored_bits(kind)
        total = bits if kind.block_size == 1 else bits + 1
        error = added_error(kind)
        in_file = 8 * kind.block_bytes / kind.block_size
        print(
            f"| {kind.name} | {in_file:g} | {bits} | {total} | {_HOW[kind]} "
            f"| {error.output:.1e} | {error.own:.1e} |"
        )


if __name__ == "__main__":
    main()
