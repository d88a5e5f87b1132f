"""What running a type adds to the type's own error, as a Markdown table.

    python -m tests.type_error

Gaussian weights, quantized by llama.cpp's quantizers (libgguf); errors are
|x W' - x W| / |x W| over Gaussian x: of the products that each backend makes of the file's
bytes, against gguf-py's dequantize in float64, and of gguf-py's weights against the
unquantized ones for what the type itself lost.
"""

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from models.gguf.tensor_types import TensorType
from models.native.kernels import Kernels, kernels
from models.network.cpu_llama import hold_in_place
from models.network.layers import HoldMatrix, hold_decoded
from tests.gguf_factory import quantize
from tests.models.gguf.blocks import tensor_of, weights_of

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class AddedError:
    """Relative errors of outputs: by the CPU kernels, by plain MLX, and the type's own."""

    cpu: float
    reference: float
    own: float


def type_error(
    kind: TensorType, by: Kernels, *, rows: int = 131, columns: int = 2048, tokens: int = 61
) -> AddedError:
    """Measure one type on Gaussian weights."""
    rng = np.random.default_rng(7)
    weights = rng.standard_normal((rows, columns), np.float32) / np.float32(np.sqrt(columns))
    x = rng.standard_normal((tokens, columns), np.float32)
    data = quantize(weights, kind)
    exact = x.astype(np.float64) @ weights_of(kind, data).astype(np.float64).T

    def added(hold: HoldMatrix) -> float:
        product = hold([tensor_of(kind, data)], None, mx.float32)(mx.array(x))
        return _relative(np.asarray(product).astype(np.float64), exact)

    return AddedError(
        cpu=added(hold_in_place(by)),
        reference=added(hold_decoded),
        own=_relative(exact, x.astype(np.float64) @ weights.astype(np.float64).T),
    )


def _relative(got: Doubles, expected: Doubles) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def main() -> None:
    """Print the table, of the larger error of few tokens and of many."""
    print("| type | bits | product, cpu | product, reference | own error |")
    print("|---|---|---|---|---|")
    for kind in TensorType:
        few, many = (type_error(kind, kernels(), tokens=tokens) for tokens in (5, 61))
        cpu, reference = max(few.cpu, many.cpu), max(few.reference, many.reference)
        bits = 8 * kind.block_bytes / kind.block_size
        print(f"| {kind.name} | {bits:.4g} | {cpu:.0e} | {reference:.0e} | {many.own:.1e} |")


if __name__ == "__main__":
    main()
