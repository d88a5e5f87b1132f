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
from tests.kvcache.native.native_tiers import ColdBlocks, UnencodedPiece, attend_tiers

HKV, HQ, DIM, BLOCK = 2, 4, 32, 32
Misuse = Callable[[Library], object]


def _zeros(*shape: int, dtype: type = np.float32) -> np.ndarray[Any, Any]:
    return np.zeros(shape, dtype)


KEYS = _zeros(1, HKV, 9, DIM)


def _attend(q: Any = None, **changes: Any) -> Misuse:
    given = {"keys": KEYS, "values": KEYS, "held": 9, "scale": 0.2, "padding": None} | changes
    queries = _zeros(1, HQ, 2, DIM) if q is None else q
    return lambda kernels: kernels.attend(queries, **given)


def _pieces(**changes: Any) -> Misuse:
    keys = structs.strided(KEYS)
    given = {
        "q": _zeros(1, HQ, 2, DIM),
        "q_sink": _zeros(1, HQ, 2, DIM),
        "pieces": [structs.Piece(keys, keys, 9, 0, 0)],
        "blocks": structs.Blocks(),
        "kv_heads": HKV,
        "lowest": _zeros(2, dtype=np.int64),
        "position": 7,
        "scale": 0.2,
    } | changes
    return lambda kernels: kernels.attend_pieces(**given)


def _coder(role: Role = Role.KEYS, heads: int = HKV) -> CpuCodec:
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


def _cold(**changes: Any) -> Misuse:
    given = {
        "key_codec": _coder(),
        "value_codec": _coder(Role.VALUES),
        "segments": [(_records(4, 1, HKV), _records(4, 1, HKV, role=Role.VALUES))],
        "order": np.array([[0, 1], [0, 3]], np.int64),
        "position": 0,
    } | changes
    batch = given.pop("batch", 1)

    def call(kernels: Library) -> object:
        cold = ColdBlocks(**given)
        q, lowest = _zeros(batch, HQ, 1, DIM), _zeros(1, dtype=np.int64)
        return attend_tiers(
            q, None, [], cold, lowest=lowest, position=64, scale=0.2, kernels=kernels
        )

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
    "pieces: sink queries": _pieces(q_sink=_zeros(1, HQ, 1, DIM)),
    "pieces: sink queries' dtype": _pieces(q_sink=_zeros(1, HQ, 2, DIM, dtype=np.float16)),
    "pieces: lowest": _pieces(lowest=_zeros(1, dtype=np.int64)),
    "pieces: lowest of rows": _pieces(lowest=_zeros(1, 1, dtype=np.int64)),
    "pieces: lowest of three axes": _pieces(lowest=_zeros(1, 1, 2, dtype=np.int64)),
    "pieces: lowest's dtype": _pieces(lowest=_zeros(2, dtype=np.int32)),
    "pieces: KV heads": _pieces(kv_heads=3),
    "pieces: no KV head": _pieces(kv_heads=0),
    "pieces: position": _pieces(position=-1),
    "piece: count": lambda _: UnencodedPiece(
        keys=_zeros(1, 2, 3, 16), values=_zeros(1, 2, 3, 16), count=4, position=0
    ),
    "piece: three axes": lambda _: structs.strided(_zeros(2, 3, 16)),
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
    "unpack: record size": lambda k: k.unpack(_coder().form, _records(2, more=-1)),
    "unpack: dtype": lambda k: k.unpack(_coder().form, _zeros(2, 8)),
    "unpack: in part": lambda k: k.unpack(_coder().form, _records(4)[::2]),
    "parts: none": _parts(lambda parts: parts.clear()),
    "parts: one missing": _parts(lambda parts: parts.pop("scales")),
    "parts: dtype": _parts(lambda parts: parts.update(words=parts["words"].view(mx.int32))),
    "parts: tokens": _parts(lambda parts: parts.update(words=parts["words"][:, :, :, :16])),
    "parts: words": _parts(lambda parts: parts.update(words=parts["words"][..., :1])),
    "parts: blocks": _parts(lambda parts: parts.update(scales=parts["scales"][:2])),
    "blocks: slot": _cold(order=np.array([[0, 4]], np.int64)),
    "blocks: slot below 0": _cold(order=np.array([[0, -1]], np.int64)),
    "blocks: segment": _cold(order=np.array([[1, 0]], np.int64)),
    "blocks: segment below 0": _cold(order=np.array([[-2, 0]], np.int64)),
    "blocks: order's dtype": _cold(order=np.array([[0, 1]], np.int32)),
    "blocks: order's shape": _cold(order=np.array([0, 1], np.int64)),
    "blocks: records": _cold(segments=[(_records(4, 1, HKV), _records(4, 1, HKV, more=64))]),
    "blocks: value slots": _cold(
        segments=[(_records(4, 1, HKV), _records(2, 1, HKV, role=Role.VALUES))]
    ),
    "blocks: batch": _cold(batch=2),
    "blocks: roles": _cold(key_codec=_coder(Role.VALUES), value_codec=_coder()),
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
        _pieces(),
        _pieces(lowest=_zeros(1, 2, dtype=np.int64)),
        _encode(_zeros(1, HKV, BLOCK, DIM), _records(1, 1, HKV)),
        _raw_pack(_zeros(3, BLOCK, DIM, dtype=np.uint8), _records(3)),
        _parts(lambda _: None),
        _cold(),
    ],
)
def test_what_the_misuses_are_made_from_is_taken(kernels: Library, use: Misuse) -> None:
    use(kernels)
