"""A matrix of the network over a file's blocks on a GPU."""

from math import prod

import mlx.core as mx
import mlx.nn as nn

from kvcache.gpu.kernel import Call, Launcher, launch_on_device
from models.gpu.blocks import Blocks
from models.gpu.product import MOST_INPUTS, product_call, with_room
from models.gpu.prompt import product_of_many
from models.gpu.rows import RowsById


class BlockLinear(nn.Module):
    """y = x W^T + b with W as blocks: x [..., columns] -> [..., rows] in x's dtype.

    dtype: of what is looked up. launch: may be another than the device's, for tests.
    """

    def __init__(
        self,
        blocks: Blocks,
        bias: mx.array | None = None,
        *,
        dtype: mx.Dtype = mx.float16,
        launch: Launcher = launch_on_device,
    ) -> None:
        super().__init__()
        self.weight = blocks.words
        if bias is not None:
            self.bias = bias
        self._blocks, self._by_id = blocks, RowsById(launch, blocks, dtype)
        self._has_room = blocks.held_columns > blocks.columns
        self._launch = launch
        # The launch for each shape and dtype of x.
        self._calls: dict[tuple[tuple[int, ...], mx.Dtype], Call] = {}

    def __call__(self, x: mx.array) -> mx.array:
        key = x.shape, x.dtype
        found: Call | None = self["_calls"].get(key)
        if found is None:
            if prod(x.shape[:-1]) > MOST_INPUTS:
                return self._of_many(x)
            found = product_call(self._blocks, *key, self.get("bias"))
            self["_calls"][key] = found
        (y,) = self._launch(found.of(with_room(self._blocks, x) if self._has_room else x))
        return y

    @property
    def rows(self) -> int:
        """Numbers that a product has."""
        return self._blocks.rows

    @property
    def columns(self) -> int:
        """Numbers of x."""
        return self._blocks.columns

    @property
    def nbytes(self) -> int:
        """Of the blocks."""
        return self._blocks.nbytes

    def look_up(self, ids: mx.array, scale: float) -> mx.array:
        """W's rows `ids` [...] times `scale`, [..., columns]; see `RowsById`."""
        return self._by_id(ids, scale)

    def _of_many(self, x: mx.array) -> mx.array:
        rows = x.reshape(-1, x.shape[-1])
        found = product_of_many(self._launch, self._blocks, rows, self.get("bias"))
        return found.reshape(*x.shape[:-1], self.rows)
