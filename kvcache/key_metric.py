"""The second moments of a model's queries, which its keys are encoded by, and their file.

They are made once of a model (`models.calibrate`) and stay: so a text is encoded alike
whatever came before it, and however often. Knows no model and no text.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import mlx.core as mx

from kvcache.codecs.feedback import LayerMetric
from kvcache.errors import CacheError, reason
from kvcache.integrity import check_sum, checksum

_FORMAT = "ember key metric 1"
_MOMENTS, _SUM, _TOLD = "moments", "sum", "format"


@dataclass(frozen=True, kw_only=True, eq=False)
class KeyMetric:
    """Of each layer."""

    layers: tuple[LayerMetric, ...]

    @classmethod
    def of(cls, moments: mx.array) -> Self:
        """Of moments [layers, Hkv, D, D], float32. Raises CacheError for what are none."""
        shape, dtype = moments.shape, moments.dtype
        if len(shape) != 4 or shape[2] != shape[3] or dtype != mx.float32:
            raise CacheError(f"got moments {dtype} {shape}, expected float32 [layers, Hkv, D, D]")
        diagonals = mx.diagonal(moments, axis1=2, axis2=3)
        if not mx.isfinite(moments).all() or (diagonals < 0).any():
            raise CacheError("got moments that no queries have: infinite, or below zero")
        return cls(layers=tuple(LayerMetric(moments=each) for each in moments))

    def save(self, path: Path) -> None:
        """Write a safetensors file. Raises OSError."""
        moments = mx.stack([layer.moments for layer in self.layers])
        arrays = {_MOMENTS: moments, _SUM: checksum(_FORMAT, [moments])}
        mx.save_safetensors(str(path), arrays, metadata={_TOLD: _FORMAT})

    @classmethod
    def load(cls, path: Path) -> Self:
        """What `save` wrote. Raises CacheError for what is damaged or something else."""
        arrays: Any
        texts: Any
        try:
            arrays, texts = mx.load(str(path), return_metadata=True)
        except (OSError, RuntimeError, ValueError) as error:
            raise CacheError(f"{path} is no key metric ({reason(error)})") from error
        if texts.get(_TOLD) != _FORMAT or arrays.keys() != {_MOMENTS, _SUM}:
            raise CacheError(f"{path} is no key metric that this version knows")
        check_sum(arrays[_SUM], _FORMAT, [arrays[_MOMENTS]])
        return cls.of(arrays[_MOMENTS])

    def check(self, layers: int, kv_heads: int, dim: int) -> None:
        """Raise CacheError unless it is of a model of this shape."""
        found = (len(self.layers), *self.layers[0].moments.shape[:2]) if self.layers else ()
        if found != (layers, kv_heads, dim):
            raise CacheError(
                f"got the key metric of another model: layers, KV heads and head dimension are "
                f"{found}, expected {(layers, kv_heads, dim)}"
            )
