"""What every unencoded cache refuses before it changes anything.

Knows shapes, dtypes and finiteness; how and where a cache stores tokens is not
known here.
"""

from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from kvcache.config import HotDtype
from kvcache.cpu_memory import as_numpy
from kvcache.errors import CacheError
from kvcache.given import integers, number
from kvcache.reference import Mask, fitting_mask

_FLOATING = frozenset({mx.float16, mx.bfloat16, mx.float32, mx.float64})
# The largest number of each dtype.
_LARGEST = {dtype: float(mx.finfo(dtype.mx).max) for dtype in HotDtype}

Expected = tuple[int | None, int | None, int | None]


def check_tokens(k: mx.array, v: mx.array, expected: Expected) -> None:
    """Refuse keys and values that are not two equal floating [B, Hkv, L, D].

    expected: B, Hkv and D, None for any. Raises CacheError.
    """
    shape = k.shape
    if len(shape) != 4 or shape != v.shape or not shape[0] * shape[1] * shape[3]:
        raise CacheError(
            f"got keys {shape} and values {v.shape}, expected two equal [B, Hkv, L, D] "
            "with B, Hkv and D at least 1"
        )
    if k.dtype not in _FLOATING or v.dtype not in _FLOATING:
        name, array = ("values", v) if k.dtype in _FLOATING else ("keys", k)
        raise CacheError(
            f"got {name} of {array.dtype}, expected float16, bfloat16 or float32; "
            "convert them first"
        )
    got = shape[0], shape[1], shape[3]
    if got != expected and any(
        want not in (None, each) for want, each in zip(expected, got, strict=True)
    ):
        b, h, d = ("any" if want is None else str(want) for want in expected)
        raise CacheError(
            f"got keys {shape}, but the cache holds [B, Hkv, _, D] = [{b}, {h}, _, {d}]"
        )


def checked_rows(rows: object, count: int) -> list[int]:
    """Batch rows of a cache of `count`, at least one. Raises CacheError for any other."""
    found = integers("rows", rows, least=None)
    if not found or not all(0 <= row < count for row in found):
        raise CacheError(
            f"got rows {found}, expected at least one of the cache's {count}, from 0 on"
        )
    return found


def check_queries(q: mx.array, like: tuple[int, int, int], held: int) -> None:
    """Refuse queries that cannot attend to `held` tokens of B, Hkv and D = `like`."""
    (batch, kv_heads, dim), shape = like, q.shape
    if len(shape) == 4 and held < max(shape[2], 1):
        raise CacheError(
            f"got {shape[2]} queries over {held} held tokens, "
            "expected no more queries than tokens; append first"
        )
    alike = len(shape) == 4 and (shape[0], shape[3]) == (batch, dim)
    if not alike or not shape[1] or shape[1] % kv_heads:
        raise CacheError(
            f"got queries {shape}, expected [{batch}, a multiple of {kv_heads}, L, {dim}]"
        )
    if q.dtype not in _FLOATING:
        raise CacheError(f"got queries of {q.dtype}, expected float16, bfloat16 or float32")


def scored(scale: object, mask: object, shape: tuple[int, ...]) -> tuple[float, Mask]:
    """A caller's scale and mask, for scores of `shape` [B, Hq, L, S]. Raises CacheError."""
    return number("scale", scale), fitting_mask(mask, shape)


def check_finite_queries(q: mx.array) -> None:
    """Refuse queries that are NaN or infinite. Evaluates them. Raises CacheError."""
    found = as_numpy(q)
    # As of tokens: a sum of squares is fast. Where it overflows, each is looked at.
    whole = found.dtype == np.float32 and np.isfinite(np.vdot(found, found))
    if not whole and not np.isfinite(found).all():
        raise CacheError(
            "got queries that are NaN or infinite; the cache is as it was: look for what "
            "produced them"
        )


def check_finite(k: mx.array, v: mx.array, dtype: HotDtype, *, on_cpu: bool) -> None:
    """Refuse keys or values that are NaN, infinite, or too large for `dtype`.

    Evaluates both. On the CPU they are about to be read anyway and the check costs a
    microsecond or two; on another device it waits for all work queued before.
    """
    if on_cpu:
        finite = _fits(as_numpy(k), dtype) and _fits(as_numpy(v), dtype)
    else:
        seen = [mx.isfinite(tokens.astype(dtype.mx)).all() for tokens in (k, v)]
        finite = bool((seen[0] & seen[1]).item())
    if not finite:
        raise not_finite(dtype)


def not_finite(dtype: HotDtype) -> CacheError:
    """The error for keys or values that are NaN, infinite, or too large for `dtype`."""
    return CacheError(
        f"got keys or values that are NaN, infinite or beyond what {dtype.value} holds "
        f"({_LARGEST[dtype]:.3g}); the cache is as it was: look for what produced them, "
        "or take a wider dtype (`hot_dtype`: bf16 or f32)"
    )


def _fits(tokens: npt.NDArray[Any], dtype: HotDtype) -> bool:
    """Whether no element is NaN or larger than the dtype's largest number."""
    largest = _LARGEST[dtype]
    # A sum of squares below the square of the bound proves it, by one fast BLAS call.
    if tokens.dtype == np.float32 and float(np.vdot(tokens, tokens)) < largest**2:
        return True
    return float(np.abs(tokens).max(initial=0)) <= largest
