"""y = x W^T + b over a file's blocks, by one launch for a few rows of x."""

from functools import lru_cache
from pathlib import Path

import mlx.core as mx

from kvcache.gpu.kernel import Call, Kernel, Launcher, in_device_memory
from models.gguf.tensor_types import TensorType
from models.gpu.blocks import MACROS, Blocks

FOLDER = Path(__file__).parent / "kernels"
MOST_INPUTS = 8  # rows of x that the kernel takes
_SIMDGROUPS = 2  # of a threadgroup
_LANES = 32
_ROWS = {1: 4, 2: 4, 4: 4, 8: 4}


def product(
    launch: Launcher, blocks: Blocks, x: mx.array, added: mx.array | None = None
) -> mx.array:
    """x [up to 8, held columns] times the rows of blocks: [rows of x, rows] in x's dtype."""
    count = x.shape[0]
    inputs = next(power for power in _ROWS if power >= count)
    rows = _ROWS[inputs]
    groups = -(-blocks.rows // (rows * _SIMDGROUPS))
    threads = _LANES * _SIMDGROUPS
    (y,) = launch(
        Call(
            kernel=kernel(blocks.type),
            inputs=[
                blocks.words,
                x,
                blocks.arguments(count),
                in_device_memory(mx.zeros(8) if added is None else added),
            ],
            constants={
                "INPUTS": inputs,
                "ROWS": rows,
                "SIMDGROUPS": _SIMDGROUPS,
                "ADDED": added is not None,
                "Y": x.dtype,
            },
            grid=(threads * groups, 1, 1),
            threadgroup=(threads, 1, 1),
            shapes=[(count, blocks.rows)],
            dtypes=[x.dtype],
        )
    )
    return y


@lru_cache
def kernel(kind: TensorType) -> Kernel:
    """The kernel for blocks of a type."""
    return Kernel.load(
        "product",
        folder=FOLDER,
        inputs=("blocks", "x", "args", "added"),
        outputs=("y",),
        headers=("packing.h", "blocks.h"),
        macros=(*MACROS, ("TYPE", kind.name)),
    )
