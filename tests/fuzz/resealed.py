"""Saved caches into others whose sums are right, so that what is behind the sum is reached.

A byte that is changed anywhere in such a file never passes it. Everything comes from a generator
that the caller seeds.
"""

import json
import tempfile
import zlib
from pathlib import Path
from random import Random
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import save_prompt_cache

from app.wake.piece import LENGTH_BYTES, ended
from kvcache import EmberError, load_prompt_cache
from kvcache.integrity import checksum
from tests.fuzz.mutation import mutated

_NUMBERS = (-1, 0, 1, 2, 3, 31, 33, 64, 1000, 1 << 20, (1 << 31) - 1, 1 << 31, 1 << 63, 0.5, 1e308)
_OTHERS: tuple[Any, ...] = (None, "", "q4", "h8", "f16", [], {}, True, [1, 2, 3], "\u0000")
_DTYPES = (mx.float16, mx.float32, mx.bfloat16, mx.uint32, mx.uint8)
_CRC_BYTES = 4
_MOST_CHANGES = 3


class _Saved:
    """Something that mlx-lm saves as a cache of ours."""

    meta_state = ""

    def __init__(self, state: tuple[Any, ...]) -> None:
        self.state = state


_Saved.__name__ = "TwoTierKVCache"


def mutated_cache(data: bytes, rng: Random) -> bytes:
    """A saved cache that says something else, or holds it; other bytes anyhow."""
    if rng.random() < 0.2:
        return mutated(data, rng)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "saved.safetensors"
        path.write_bytes(data)
        try:
            (cache,) = load_prompt_cache(path)
            text, _, *arrays = cache.state
        except (EmberError, ValueError):
            return mutated(data, rng)
        for _ in range(rng.randint(1, _MOST_CHANGES)):
            if rng.random() < 0.6:
                text = json.dumps(_changed_value(json.loads(text), rng))
            else:
                at = rng.randrange(len(arrays))
                arrays[at] = _changed_array(arrays[at], rng)
        save_prompt_cache(str(path), [_Saved((text, checksum(text, arrays), *arrays))])
        return path.read_bytes()


def mutated_piece(data: bytes, rng: Random) -> bytes:
    """A piece of a kept chat whose texts or contents are others; other bytes anyhow."""
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    try:
        header = json.loads(data[LENGTH_BYTES : LENGTH_BYTES + length])
        about = header["__metadata__"]
        numbers = json.loads(about["ledgers"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return mutated(data, rng)
    body = data[LENGTH_BYTES + length : -_CRC_BYTES]
    match rng.randrange(4):
        case 0:
            about["ledgers"] = json.dumps(_changed_value(numbers, rng))
        case 1:
            name = rng.choice(sorted(about))
            about[name] = str(rng.choice((*_NUMBERS, *_OTHERS)))
        case 2:
            header = _changed_value(header, rng)
        case _:
            body = mutated(body, rng)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    whole = len(text).to_bytes(LENGTH_BYTES, "little") + text + body
    # The sum is over what follows nothing: header and all.
    return whole + ended(zlib.crc32(whole))


def _changed_value(value: Any, rng: Random) -> Any:
    """The same JSON with one thing in it changed, taken out, or moved by one."""
    if isinstance(value, dict | list) and value and rng.random() < 0.9:
        keys = sorted(value) if isinstance(value, dict) else range(len(value))
        at = rng.choice(keys)
        made = value.copy()
        if rng.random() < 0.1:
            del made[at]
        else:
            made[at] = _changed_value(value[at], rng)
        return made
    if type(value) is int and rng.random() < 0.5:
        return value + rng.choice((-1, 1, 31, 32))
    return rng.choice((*_NUMBERS, *_OTHERS))


def _changed_array(array: mx.array | None, rng: Random) -> mx.array | None:
    if array is None:
        return mx.zeros((1, 1, rng.randint(1, 9), 32), rng.choice(_DTYPES))
    match rng.randrange(5):
        case 0:
            return None
        case 1:
            return array.astype(rng.choice(_DTYPES))
        case 2:
            axis = rng.randrange(array.ndim)
            return mx.concatenate([array, array], axis=axis) if array.ndim else array[None]
        case 3:
            return mx.swapaxes(array, 0, rng.randrange(array.ndim)) if array.ndim else None
        case _:  # numbers that are none, where it holds such
            far = mx.array(rng.choice((float("nan"), float("inf"), -65504.0, 7.0)))
            return mx.full(array.shape, far.astype(array.dtype))
