"""How a GPU holds a network's matrices: as the file's blocks wherever its kernels are right."""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from kvcache.gpu.kernel import Launcher, launch_on_device
from models.gguf.decode import decode
from models.gguf.tensor import Tensor
from models.gguf.tensor_types import TensorType
from models.gpu import affine
from models.gpu.blocks import Blocks
from models.gpu.matrix import BlockLinear
from models.gpu.reading import read_rows
from models.gpu.trial import fault
from models.network.layers import Projection, hold_decoded

_ROWS = 13  # that are tried

_Kind = tuple[TensorType, int, bool]


class GpuMatrices:
    """Makes matrices (`HoldMatrix`), by one read of the file and one copy of its bytes.

    Those of each type and number of columns are tried before the first is read; where the
    kernels fail, matrices are decoded to activations' floats, and `notes` says so.
    launch: may be another than the device's, for tests.
    """

    def __init__(self, *, launch: Launcher = launch_on_device) -> None:
        self.notes: list[str] = []
        self._launch = launch
        self._decoded: dict[_Kind, bool] = {}

    def __call__(
        self, tensors: Sequence[Tensor], bias: mx.array | None, dtype: mx.Dtype
    ) -> Projection:
        """See `HoldMatrix`. Raises `GGUFError` where the file is shorter than it was."""
        first = tensors[0]
        if first.type in affine.BITS:
            return affine.AffineLinear(tensors, bias, dtype)
        kind = first.type, first.columns, bias is not None
        if kind not in self._decoded:
            self._decoded[kind] = self._must_decode(first, dtype, biased=bias is not None)
        if self._decoded[kind]:
            return hold_decoded(tensors, bias, dtype)
        rows = sum(tensor.rows for tensor in tensors)
        blocks = Blocks.empty(first.type, rows=rows, columns=first.columns)
        read_rows(tensors, blocks.write)
        return BlockLinear(blocks, bias, dtype=dtype, launch=self._launch)

    def _must_decode(self, tensor: Tensor, dtype: mx.Dtype, *, biased: bool) -> bool:
        """Whether kernels cannot be had for such matrices."""
        some = _first_rows(tensor)
        blocks = Blocks.empty(tensor.type, rows=some.rows, columns=some.columns)
        blocks.write(0, some.data)
        found = fault(self._launch, blocks, decode(some), dtype, biased=biased)
        if found is not None:
            self._note(
                f"{tensor.type.name}: the GPU kernels over its blocks {found}; "
                "run `make metal-check` and report its table"
            )
        return found is not None

    def _note(self, why: str) -> None:
        note = f"matrices are decoded to 16-bit floats, which takes more memory, of {why}"
        if note not in self.notes:
            self.notes.append(note)


def _first_rows(tensor: Tensor) -> Tensor:
    count = min(_ROWS, tensor.rows)
    data = np.empty((count, tensor.data.shape[1]), np.uint8)
    tensor.read(data)
    shape = count, tensor.columns
    return Tensor(name=tensor.name, type=tensor.type, shape=shape, data=data)
