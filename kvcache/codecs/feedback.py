"""Error feedback: what rounding one channel of a key does to scores, later channels make up for.

An error e of a key costs e' H e in scores, where H = E[q q'] is the second moment of the
queries that meet it. Channels are rounded one after the other, and the error of each is
spread over those that are still to come, as the factors of H say (LDLQ, arXiv 2307.13304;
GPTQ, arXiv 2210.17323, both for weights). Only codes, scales and zeros come out otherwise:
blocks are as large as without, and are decoded alike.

This module does not know whose queries were counted, nor when.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from kvcache.codecs.rotation import SignedHadamard
from kvcache.errors import CacheError, reason

Floats = npt.NDArray[np.float64]

# Added to each channel's moment, of their mean: queries to come are not quite like those that
# were counted. Measured at 2 to 5 bits: a third or three times as much costs about 1%.
_DAMPING = 0.1


@dataclass(frozen=True, kw_only=True, eq=False)
class Feedback:
    """How errors are spread in one layer, in the basis of its codec.

    order [Hkv, D], int32: the channels as they are rounded, those that queries use most first.
    weights [Hkv, D, D], float32: [d, e] is how much of the error of the d-th of them the e-th is
    given, less itself; 0 unless e > d.
    """

    order: mx.array
    weights: mx.array


def feedback_bytes(heads: int, dim: int) -> int:
    """Bytes of a layer's `Feedback`."""
    return heads * (dim * dim + dim) * mx.float32.size


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerMetric:
    """The second moments of one layer's queries as they meet its keys.

    moments: reads [Hkv, D, D], float32, over the G query heads of each KV head, in the given
    basis. They are not held, since only the feedback made of them is used again and again. A
    factor of all makes no difference.
    """

    moments: Callable[[], mx.array]
    _made: dict[SignedHadamard | None, Feedback] = field(default_factory=dict, repr=False)

    def feedback(self, rotation: SignedHadamard | None) -> Feedback:
        """For a codec of this basis; the same object for the same basis."""
        if rotation not in self._made:
            self._made[rotation] = _feedback(self.moments(), rotation)
        return self._made[rotation]


def _feedback(moments: mx.array, rotation: SignedHadamard | None) -> Feedback:
    orders, weights = [], []
    for moment in _in_basis(np.asarray(moments).astype(np.float64), rotation):
        order = np.argsort(-np.diag(moment), kind="stable")
        orders.append(order.astype(np.int32))
        weights.append(_weights(moment[np.ix_(order, order)]).astype(np.float32))
    found = Feedback(order=mx.array(np.stack(orders)), weights=mx.array(np.stack(weights)))
    mx.eval(found.order, found.weights)
    return found


def _in_basis(moments: Floats, rotation: SignedHadamard | None) -> Floats:
    """R' H R of each head."""
    if rotation is None:
        return moments
    heads, dim = moments.shape[:2]
    basis = rotation.basis(heads, dim)
    matrix = np.asarray(basis.signs)[..., None].astype(np.float64) * np.asarray(basis.matrix)
    turned: Floats = matrix.swapaxes(1, 2) @ moments @ matrix
    return turned


def _weights(moment: Floats) -> Floats:
    """Strictly upper triangular: the rows of the factor U of H^-1 = U' U, over their diagonal.

    Raises CacheError for an H that is no second moment.
    """
    mean = np.trace(moment) / len(moment)
    if not mean > 0:  # no query came to this head
        return np.zeros_like(moment)
    damped = moment / mean + _DAMPING * np.eye(len(moment))
    try:
        upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    except np.linalg.LinAlgError as error:
        raise CacheError(f"got moments that no queries have: {reason(error)}") from error
    weights: Floats = np.triu(upper / np.diag(upper)[:, None], 1)
    return weights
