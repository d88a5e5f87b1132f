"""The second moments of a model's queries, which its keys are encoded by, and their file.

They are made once of a model (`models.calibrate`) and stay: so a text is encoded alike
whatever came before it, and however often. Knows no model and no text.

Queries come turned by their position. A metric counted at the first positions alone serves
keys there; so what was counted is turned on, half over the positions of usual chats and
half over all that there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from kvcache.codecs.feedback import LayerMetric
from kvcache.errors import CacheError, reason
from kvcache.given import array, refused
from kvcache.integrity import checksum, is_sum
from kvcache.turn import Rotation

_FORMAT = "ember key metric 1"
_SUM, _TOLD = "sum", "format"
_USUAL = 8192  # positions of usual chats

Floats = npt.NDArray[np.float64]
Complex = npt.NDArray[np.complex128]


@dataclass(frozen=True, kw_only=True, eq=False)
class KeyMetric:
    """Of each layer. shape: Hkv and D. total: a sum over all, by which two are told apart."""

    layers: tuple[LayerMetric, ...]
    shape: tuple[int, int]
    total: int

    @classmethod
    def of(cls, moments: Sequence[mx.array]) -> Self:
        """Of each layer's moments [Hkv, D, D], float32. Raises CacheError for what are none."""
        given: object = moments
        if not isinstance(given, list | tuple):
            raise refused("moments", given, "an array [Hkv, D, D] for each layer")
        found = [array("moments", each) for each in given]
        shape = _checked(found)
        layers = (LayerMetric(moments=partial(mx.array, moment)) for moment in found)
        return cls(layers=tuple(layers), shape=shape, total=_total(found))

    @classmethod
    def load(cls, path: Path) -> Self:
        """What `save` wrote. Raises CacheError for what is damaged or something else.

        Moments stay in the file, which is read again where they are asked for.
        """
        arrays, told = _read(path)
        names = [str(at) for at in range(len(arrays) - 1)]
        if told != _FORMAT or arrays.keys() != {*names, _SUM}:
            raise CacheError(f"{path} is no key metric that this version knows")
        moments = [arrays[name] for name in names]
        if not is_sum(arrays[_SUM], _FORMAT, moments):
            raise CacheError(
                f"the key metric {path} is damaged: its sum is not that of its contents; "
                "delete the file and count it again"
            )
        shape = _checked(moments)
        layers = (LayerMetric(moments=partial(_layer, path, at)) for at in range(len(moments)))
        return cls(layers=tuple(layers), shape=shape, total=_total(moments))

    def save(self, path: Path) -> None:
        """Write a safetensors file. Raises OSError."""
        arrays = {str(at): layer.moments() for at, layer in enumerate(self.layers)}
        total = {_SUM: mx.array(self.total, mx.uint32)}
        mx.save_safetensors(str(path), arrays | total, metadata={_TOLD: _FORMAT})

    def check(self, layers: int, kv_heads: int, dim: int) -> None:
        """Raise CacheError unless it is of a model of this shape."""
        if (len(self.layers), *self.shape) != (layers, kv_heads, dim):
            raise CacheError(
                f"got the key metric of another model, {len(self.layers)} layers of "
                f"{self.shape} KV heads and head dimensions, expected {layers} of "
                f"{(kv_heads, dim)}"
            )


def _total(moments: Sequence[mx.array]) -> int:
    return int(np.asarray(checksum(_FORMAT, moments)))


def _layer(path: Path, at: int) -> mx.array:
    return _read(path)[0][str(at)]


def _read(path: Path) -> tuple[dict[str, mx.array], str | None]:
    """The arrays of a file, each read once it is looked at, and what it says it is."""
    found: Any
    try:
        found = mx.load(str(path), return_metadata=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise CacheError(f"{path} is no key metric ({reason(error)})") from error
    arrays, texts = found
    return arrays, texts.get(_TOLD)


def _checked(moments: Sequence[mx.array]) -> tuple[int, int]:
    """Hkv and D of them all. Raises CacheError for what no queries have."""
    kinds = {(each.shape, each.dtype) for each in moments}
    ((shape, dtype),) = kinds if len(kinds) == 1 else (((), None),)
    if len(shape) != 3 or shape[1] != shape[2] or dtype != mx.float32:
        raise CacheError(f"got moments {kinds}, expected float32 [Hkv, D, D] of each layer")
    for moment in moments:
        diagonals = mx.diagonal(moment, axis1=1, axis2=2)
        if not mx.isfinite(moment).all() or (diagonals < 0).any():
            raise CacheError("got moments that no queries have: infinite, or below zero")
    return shape[0], shape[1]


def anywhere(moments: mx.array, rotation: Rotation | None) -> mx.array:
    """The mean of moments [Hkv, D, D] over positions: those of queries that stand anywhere.

    rotation: what turned the queries; None is not known, and leaves moments as they are.
    """
    if rotation is None or not len(rotation.periods):
        return moments
    first, second, speeds = _pairs(rotation, moments.shape[-1])
    h = np.asarray(moments).astype(np.float64)
    # A pair as the complex number a + ib, which a position p turns by exp(i speed p).
    aa, ab = h[:, first[:, None], first], h[:, first[:, None], second]
    ba, bb = h[:, second[:, None], first], h[:, second[:, None], second]
    apart = (aa + bb + 1j * (ba - ab)) * _mean_turn(speeds[:, None] - speeds)
    along = (aa - bb + 1j * (ba + ab)) * _mean_turn(speeds[:, None] + speeds)
    mean = np.empty_like(h)
    mean[:, first[:, None], first] = (apart.real + along.real) / 2
    mean[:, second[:, None], second] = (apart.real - along.real) / 2
    mean[:, second[:, None], first] = (apart.imag + along.imag) / 2
    mean[:, first[:, None], second] = (along.imag - apart.imag) / 2
    return mx.array(mean.astype(np.float32))


def _pairs(rotation: Rotation, dim: int) -> tuple[npt.NDArray[Any], ...]:
    """Channels that turn together, the first and the second of each pair, and how fast."""
    pairs = len(rotation.periods)
    turning = np.arange(2 * pairs).reshape((pairs, 2) if rotation.traditional else (2, pairs))
    first, second = turning.T if rotation.traditional else turning
    still = np.arange(2 * pairs, dim).reshape(-1, 2)
    speeds = np.concatenate([1 / rotation.periods, np.zeros(len(still))])
    return (
        np.concatenate([first, still[:, 0]]),
        np.concatenate([second, still[:, 1]]),
        speeds,
    )


def _mean_turn(speeds: Floats) -> Complex:
    """The mean of exp(i speed p), half over usual positions p and half over all."""
    still = speeds == 0
    angles = np.where(still, 1.0, speeds) * _USUAL
    usual = np.where(still, 1, (np.exp(1j * angles) - 1) / (1j * angles))
    mean: Complex = (usual + still) / 2
    return mean
