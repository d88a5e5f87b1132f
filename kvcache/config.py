"""What a caller asks of a cache, before any model is known.

This module does not know a model's shape: `plan.resolve` turns a configuration
and a shape into ring sizes and bytes.
"""

import re
from dataclasses import dataclass
from enum import Enum
from typing import Self

import mlx.core as mx

from kvcache.errors import CacheError
from kvcache.native.build import NativeUnavailableError
from kvcache.native.library import library


class HotDtype(Enum):
    """Precision of keys and values that are not encoded."""

    F16 = "f16"
    BF16 = "bf16"
    F32 = "f32"

    @property
    def mx(self) -> mx.Dtype:
        """The MLX dtype."""
        return {HotDtype.F16: mx.float16, HotDtype.BF16: mx.bfloat16, HotDtype.F32: mx.float32}[
            self
        ]


class Backend(Enum):
    """Which implementation computes attention and, in ember's network, products.

    REFERENCE is plain MLX on any device, GPU is MLX's fused attention, CPU is
    the native kernels. AUTO takes GPU where MLX's default device is one, else
    CPU where the kernels can be compiled, else REFERENCE.
    """

    AUTO = "auto"
    REFERENCE = "reference"
    CPU = "cpu"
    GPU = "gpu"

    def resolve(self) -> "Backend":
        """The backend that will really run on MLX's default device.

        Raises CacheError when GPU or CPU is asked for and cannot run here.
        """
        on_gpu = mx.default_device().type == mx.DeviceType.gpu
        if self is Backend.AUTO:
            return Backend.GPU if on_gpu else _best_on_cpu()
        if self is Backend.CPU:
            library()
        if self is Backend.GPU and not on_gpu:
            raise CacheError(
                "the gpu backend needs a Metal or CUDA device, but MLX runs on the CPU here; "
                "use --backend auto or --backend reference"
            )
        return self


def _best_on_cpu() -> Backend:
    try:
        library()
    except NativeUnavailableError:
        return Backend.REFERENCE
    return Backend.CPU


_UNITS = {"": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9}


def parse_bytes(text: str) -> int:
    """Turn "64MiB", "1.5 GiB", "500MB" or "1048576" into bytes.

    Raises CacheError for anything else, zero included.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    size = int(float(match[1]) * _UNITS[match[2]]) if match and match[2] in _UNITS else 0
    if size <= 0:
        raise CacheError(f"got size {text!r}, expected a number of bytes such as 64MiB or 1.5GiB")
    return size


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """A cache policy.

    max_tokens: tokens held at most; None means as many as the model's context.
    budget: bytes held at most over all layers; None means no bound but max_tokens.
    hot_dtype: precision of keys and values that are not encoded.
    backend: which attention implementation runs.
    beyond_context: allow a window longer than the model was trained for.
    """

    max_tokens: int | None = None
    budget: int | None = None
    hot_dtype: HotDtype = HotDtype.F16
    backend: Backend = Backend.AUTO
    beyond_context: bool = False

    def __post_init__(self) -> None:
        for name in ("max_tokens", "budget"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise CacheError(f"got {name}={value}, expected at least 1")

    @classmethod
    def for_budget(
        cls,
        budget: str | int,
        *,
        hot_dtype: HotDtype = HotDtype.F16,
        backend: Backend = Backend.AUTO,
    ) -> Self:
        """A configuration that holds as many tokens as fit in `budget` ("64MiB" or bytes)."""
        size = parse_bytes(budget) if isinstance(budget, str) else budget
        return cls(budget=size, hot_dtype=hot_dtype, backend=backend)
