"""Bytes of memory a second that MLX's own simplest kernels reach: what every share is one of."""

from collections.abc import Iterator

import mlx.core as mx

from tests.metal.check.rows import BandwidthRow
from tests.metal.check.sizes import Sizes


def run(sizes: Sizes) -> Iterator[BandwidthRow]:
    """A copy, which reads and writes, and a sum, which reads."""
    data = mx.ones((sizes.copied // 4,), mx.float32)
    seconds = sizes.timer.chained(mx.negative, data)
    yield _row("copy", 2 * data.nbytes, seconds)

    def read(before: mx.array) -> mx.array:
        return mx.sum(mx.depends([data], [before])[0])

    yield _row("read", data.nbytes, sizes.timer.chained(read, data))


def _row(what: str, moved: int, seconds: float) -> BandwidthRow:
    return BandwidthRow(what=what, bytes=moved, seconds=seconds, gb_s=moved / seconds / 1e9)
