"""Whether the kernels over blocks run on this GPU and are right: a few rows of a matrix tried.

The text may meet a GPU, a driver or an MLX that nobody has tried it on. What they give is
compared with the rows as gguf-py decodes them; this also compiles each kernel, so that no
answer waits for that.
"""

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from kvcache.gpu.kernel import LEAST_SIZE, Launcher
from models.gpu.blocks import Blocks
from models.gpu.product import MOST_INPUTS, product
from models.gpu.rows import decoded, look_up

Array = npt.NDArray[np.floating]

# Of the largest number: twice what the dtype rounds off, and far below one misread code.
_MOST_ERROR = {mx.float32: 1e-5, mx.float16: 2**-10, mx.bfloat16: 2**-7}


def fault(
    launch: Launcher, blocks: Blocks, weights: Array, dtype: mx.Dtype, *, biased: bool
) -> str | None:
    """What is wrong with the kernels here, in words; None where nothing is.

    blocks: some rows, whose float32 weights are `weights`. biased: whether matrices of this
    kind have biases.
    """
    try:
        worst = max(_errors(launch, blocks, weights, dtype, biased=biased))
    except (RuntimeError, ValueError) as problem:  # MLX's two, for what the GPU refuses
        return f"do not run here: {str(problem).strip().partition(chr(10))[0]}"
    if worst <= _MOST_ERROR[dtype]:
        return None
    return f"differ from the file's weights by {worst:.2g} of the largest number here"


def _errors(
    launch: Launcher, blocks: Blocks, weights: Array, dtype: mx.Dtype, *, biased: bool
) -> list[float]:
    """Of rows, looked up and in order, and of products with every number of rows of x."""
    random = np.random.default_rng(blocks.columns)
    # Kernels are compiled for few ids and for more of them: MLX passes these in other memory.
    ids = random.integers(0, len(weights), LEAST_SIZE)
    found = [_error(decoded(launch, blocks, dtype), weights)]
    for some in (ids, ids[:1]):
        rows = look_up(launch, blocks, mx.array(some.astype(np.int32)), dtype, factor=2.0)
        found.append(_error(rows, 2 * weights[some]))
    drawn = random.normal(size=(MOST_INPUTS, blocks.columns)).astype(np.float32)
    x = mx.array(drawn).astype(dtype)
    added = mx.array(random.normal(size=len(weights)).astype(np.float32)).astype(dtype)
    right = _wide(x) @ weights.T.astype(np.float64) + biased * _wide(added)
    for count in range(1, MOST_INPUTS + 1):
        y = product(launch, blocks, x[:count], added if biased else None)
        found.append(_error(y, right[:count]))
    return found


def _error(got: mx.array, right: Array) -> float:
    """The largest difference, by the largest number; more than all others where one is NaN.

    Or by the least number that the dtype has all bits of: smaller ones are rounded by more.
    """
    largest = max(np.abs(right).max(), mx.finfo(got.dtype).smallest_normal)
    error = np.abs(_wide(got) - right).max() / largest
    return float(error) if np.isfinite(error) else float("inf")


def _wide(array: mx.array) -> npt.NDArray[np.float64]:
    return np.array(array.astype(mx.float32), dtype=np.float64)
