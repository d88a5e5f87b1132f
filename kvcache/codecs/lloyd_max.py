"""Lloyd-Max codebooks: the levels of least mean squared error for N(0, 1).

The coordinates of a randomly rotated vector of length sqrt(D) are close to
N(0, 1), so one small table serves every vector (TurboQuant, arXiv 2504.19874).
"""

from itertools import pairwise

import mlx.core as mx

_POSITIVE = {
    1: (0.79788456,),
    2: (0.45278, 1.51042),
    3: (0.24509, 0.75601, 1.34391, 2.15195),
    4: (0.12840, 0.38805, 0.65676, 0.94234, 1.25623, 1.61805, 2.06902, 2.73259),
}


def levels(bits: int) -> tuple[float, ...]:
    """The 2^bits levels, ascending; symmetric about 0."""
    positive = _POSITIVE[bits]
    return tuple(-level for level in reversed(positive)) + positive


def nearest(x: mx.array, bits: int) -> mx.array:
    """Codes (uint32) of the levels nearest to x: how many midpoints lie below each."""
    table = levels(bits)
    codes = mx.zeros(x.shape, mx.uint32)
    for low, high in pairwise(table):
        codes = codes + (x > (low + high) / 2)
    return codes


def lookup(codes: mx.array, bits: int) -> mx.array:
    """The levels of `codes`, float32."""
    return mx.array(levels(bits))[codes]
