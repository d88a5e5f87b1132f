"""Whatever the wrappers are given, nothing but what they say they read or write is touched."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from kvcache import CacheError, codec
from kvcache.native import structs
from kvcache.native.codec import CpuCodec, Role
from kvcache.native.library import Library

HKV, HQ, DIM, BLOCK = 2, 4, 32, 32
Misuse = Callable[[Library], object]


def _zeros(*shape: int, dtype: type = np.float32) -> np.ndarray[Any, Any]:
    return np.zeros(shape, dtype)


KEYS = _zeros(1, HKV, 9, DIM)


def _attend(q: Any = None, **changes: Any) -> Misuse:
    given = {"keys": KEYS, "values": KEYS, "held": 9, "scale": 0.2, "padding": None} | changes
    queries = _zeros(1, HQ, 2, DIM) if q is None else q
    return lambda kernels: kernels.attend(queries, **given)


def _tiers(q: Any = None, new: Any = None, **changes: int) -> Misuse:
    queries = _zeros(1, HQ, 2, DIM) if q is None else q
    tokens = _zeros(1, HKV, 2, DIM)
    given = {"queries": 2, "length": 2, "total": 9, "dim": DIM} | changes
    lowest = _zeros(2, dtype=np.int64)

    def call(kernels: Library) -> object:
        step = structs.TierStep(
            batch=1,
            heads=HQ,
            **{"kv_heads": HKV} | given,
            scale=0.2,
            lowest=structs.address(lowest),
        )
        ring = structs.Ring(structs.strided(KEYS), structs.strided(KEYS), 9)
        memory = structs.TierMemory(hot=ring)
        return kernels.attend_tiers(queries, step, memory, new or (tokens, tokens))

    return call


def _coder(role: Role = Role.KEYS, heads: int = HKV) -> CpuCodec:
    made = _unready(role, heads)
    made.ready()
    return made


def _unready(role: Role = Role.KEYS, heads: int = HKV) -> CpuCodec:
    name = "hkivi4" if role is Role.KEYS else "turbo3u"
    made = CpuCodec.of(codec(name), tokens=BLOCK, heads=heads, dim=DIM, role=role)
    assert made is not None
    return made


def _records(*outer: int, role: Role = Role.KEYS, more: int = 0) -> np.ndarray[Any, Any]:
    return _zeros(*outer, _coder(role).record_bytes + more, dtype=np.uint8)


def _read_only(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    array.flags.writeable = False
    return array


def _misaligned(*shape: int) -> np.ndarray[Any, Any]:
    return np.zeros(4 * int(np.prod(shape)) + 1, np.uint8)[1:].view(np.float32).reshape(shape)


def _encode(tokens: Any, records: Any) -> Misuse:
    return lambda kernels: replace(_coder(), kernels=kernels).encode(tokens, records)


def _raw_encode(tokens: Any, records: Any) -> Misuse:
    return lambda kernels: kernels.encode(_coder().form, tokens, records)


def _raw_pack(codes: Any, records: Any) -> Misuse:
    return lambda kernels: kernels.pack(_coder().form, codes, records)


def _parts(change: Callable[[dict[str, mx.array]], object]) -> Misuse:
    def call(kernels: Library) -> object:
        coder = replace(_coder(), kernels=kernels)
        parts = dict(coder.to_parts(_records(3, 1, HKV)))
        change(parts)
        return coder.from_parts(parts)

    return call


MISUSES: dict[str, Misuse] = {
    "memory of another dtype": lambda k: k.read(_zeros(640)),
    "memory in part": lambda k: k.read(_zeros(640, dtype=np.uint8)[::2]),
    "attention: dtype": _attend(_zeros(1, HQ, 2, DIM, dtype=np.float64)),
    "attention: three axes": _attend(_zeros(HQ, 2, DIM)),
    "attention: q in part": _attend(_zeros(1, HQ, 4, DIM)[:, :, ::2]),
    "attention: heads": _attend(_zeros(1, 3, 2, DIM)),
    "attention: dim": _attend(_zeros(1, HQ, 2, 16)),
    "attention: batch": _attend(_zeros(2, HQ, 2, DIM)),
    "attention: values": _attend(values=_zeros(1, HKV, 8, DIM)),
    "attention: keys' dtype": _attend(keys=_zeros(1, HKV, 9, DIM, dtype=np.float64)),
    "attention: keys in part": _attend(keys=_zeros(1, HKV, 9, 2 * DIM)[..., ::2]),
    "attention: no keys": _attend(keys=_zeros(1, 0, 9, DIM), values=_zeros(1, 0, 9, DIM)),
    "attention: too many held": _attend(held=10),
    "attention: too few held": _attend(held=1),
    "attention: padding": _attend(padding=_zeros(2, dtype=np.int32)),
    "attention: padding's dtype": _attend(padding=_zeros(1, dtype=np.int64)),
    "tiers: batch": _tiers(_zeros(2, HQ, 2, DIM)),
    "tiers: queries": _tiers(_zeros(1, HQ, 3, DIM)),
    "tiers: queries' dtype": _tiers(_zeros(1, HQ, 2, DIM, dtype=np.float16)),
    "tiers: dim": _tiers(_zeros(1, HQ, 2, 24), dim=24),
    "tiers: pairs": _tiers(pairs=DIM // 2 + 1),
    "tiers: KV heads": _tiers(kv_heads=3),
    "tiers: no KV head": _tiers(kv_heads=0),
    "tiers: too few tokens": _tiers(total=-1),
    "tiers: new tokens unasked for": _tiers(length=0),
    "tiers: new tokens": _tiers(new=(_zeros(1, HKV, 3, DIM),) * 2),
    "tiers: new keys alone": _tiers(new=(_zeros(1, HKV, 2, DIM),)),
    "tiers: new tokens' dtype": _tiers(new=(_zeros(1, HKV, 2, DIM, dtype=np.int8),) * 2),
    "tokens of three axes": lambda _: structs.strided(_zeros(2, 3, 16)),
    "encode: records too few": _encode(_zeros(1, HKV, 64, DIM), _records(1, 1, HKV)),
    "encode: heads": _encode(_zeros(1, 3, BLOCK, DIM), _records(1, 1, 3)),
    "encode: record size": _encode(_zeros(1, HKV, BLOCK, DIM), _records(1, 1, HKV, more=-1)),
    "encode: in part": _encode(_zeros(1, HKV, 64, DIM), _records(4, 1, HKV)[::2]),
    "encode: read-only": _encode(_zeros(1, HKV, BLOCK, DIM), _read_only(_records(1, 1, HKV))),
    "encode: tokens' dtype": _encode(
        _zeros(1, HKV, BLOCK, DIM, dtype=np.int8), _records(1, 1, HKV)
    ),
    "encode: raw, dim": _raw_encode(_zeros(1, HKV, BLOCK, 16), _records(1, 1, HKV)),
    "encode: raw, records' dtype": _raw_encode(
        _zeros(1, HKV, BLOCK, DIM), _records(1, 1, HKV).view(np.int8)
    ),
    "decode: dtype": lambda k: k.decode(_coder().form, _records(1, 1, HKV).view(np.int8)),
    "decode: three axes": lambda k: k.decode(_coder().form, _records(1, HKV)),
    "decode: record size": lambda k: k.decode(_coder().form, _records(1, 1, HKV, more=2)),
    "decode: heads": lambda _: _coder().decode(_records(1, 1, 3)),
    "decode: in part": lambda k: k.decode(_coder().form, _records(4, 1, HKV)[::2]),
    "pack: codes": _raw_pack(_zeros(BLOCK, 16, dtype=np.uint8), _records()),
    "pack: codes' dtype": _raw_pack(_zeros(BLOCK, DIM), _records()),
    "pack: count": _raw_pack(_zeros(2, BLOCK, DIM, dtype=np.uint8), _records(3)),
    "pack: read-only": _raw_pack(_zeros(BLOCK, DIM, dtype=np.uint8), _read_only(_records())),
    "codes: words": lambda k: k.codes(np.zeros((2, 5), np.uint32), bits=4, dim=32),
    "codes: dtype": lambda k: k.codes(np.zeros((2, 4), np.int64), bits=4, dim=32),
    "codes: bits": lambda k: k.codes(np.zeros((2, 9), np.uint32), bits=9, dim=32),
    "codes: odd": lambda k: k.codes(np.zeros((2, 2), np.uint32), bits=4, dim=12),
    "unpack: record size": lambda k: k.unpack(_coder().form, _records(2, more=-1)),
    "unpack: a form without functions": lambda k: k.unpack(_unready().form, _records(2)),
    "unpack: dtype": lambda k: k.unpack(_coder().form, _zeros(2, 8)),
    "unpack: in part": lambda k: k.unpack(_coder().form, _records(4)[::2]),
    "parts: none": _parts(lambda parts: parts.clear()),
    "parts: one missing": _parts(lambda parts: parts.pop("scales")),
    "parts: dtype": _parts(lambda parts: parts.update(words=parts["words"].view(mx.int32))),
    "parts: tokens": _parts(lambda parts: parts.update(words=parts["words"][:, :, :, :16])),
    "parts: words": _parts(lambda parts: parts.update(words=parts["words"][..., :1])),
    "parts: blocks": _parts(lambda parts: parts.update(scales=parts["scales"][:2])),
}


@pytest.mark.parametrize("misuse", MISUSES.values(), ids=MISUSES)
def test_it_is_refused_in_one_line(kernels: Library, misuse: Misuse) -> None:
    with pytest.raises(CacheError) as caught:
        misuse(kernels)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "use",
    [
        _attend(),
        _attend(padding=_zeros(1, dtype=np.int32)),
        _tiers(),
        _encode(_zeros(1, HKV, BLOCK, DIM), _records(1, 1, HKV)),
        _raw_pack(_zeros(3, BLOCK, DIM, dtype=np.uint8), _records(3)),
        _parts(lambda _: None),
    ],
)
def test_what_the_misuses_are_made_from_is_taken(kernels: Library, use: Misuse) -> None:
    use(kernels)
