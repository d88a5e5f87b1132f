"""Whatever the wrappers are given, nothing but what they say they read or write is touched."""

from collections.abc import Callable
from ctypes import c_int64
from typing import Any

import numpy as np
import pytest

from kvcache import CacheError
from kvcache.native import structs
from models.gguf.tensor_types import TensorType
from models.native.kernels import Kernels
from models.native.packed import (
    Addition,
    FeedForward,
    Inputs,
    Layer,
    Layers,
    Norm,
    Rope,
    RowNorm,
    Temperature,
    Weight,
)

HKV, HQ, DIM = 2, 4, 32
HIDDEN, INNER = 64, 96
Misuse = Callable[[Kernels], object]


def _zeros(*shape: int, dtype: type = np.float32) -> np.ndarray[Any, Any]:
    return np.zeros(shape, dtype)


def _weight(rows: int, columns: int, added: Any = None) -> Weight:
    data = _zeros(rows, columns // 32 * 34, dtype=np.uint8)
    return Weight(data, kind=TensorType.Q8_0, added=added)


def _weight_of(*shape: int, dtype: type = np.uint8, cut: Any = np.s_[:]) -> Misuse:
    return lambda _: Weight(_zeros(*shape, dtype=dtype)[cut], kind=TensorType.Q8_0)


def _norm(*shape: int, dtype: type = np.float32) -> Norm:
    return Norm(weight=_zeros(*shape, dtype=dtype), eps=1e-5)


def _inputs(x: Any = None, *, starts: tuple[int, ...] = (0,), **changes: Any) -> Misuse:
    given = {
        "weights": tuple(_weight(rows, HIDDEN) for rows in (HQ * 16, HKV * 16, HKV * 16)),
        "dim": 16,
        "norm": _norm(HIDDEN),
        "query_norm": _norm(16),
        "key_norm": _norm(HKV * 16),
        "rope": Rope(periods=np.ones(8)),
        "query_factors": _zeros(16),
        "temperature": Temperature(scale=0.1, span=3),
    } | changes
    x = _zeros(1, 3, HIDDEN) if x is None else x
    return lambda kernels: kernels.attention_inputs(x, Inputs(**given), starts=starts)


def _add(x: Any, residual: Any, **changes: Any) -> Misuse:
    return lambda kernels: kernels.add(x, Addition(_weight(5, 64), **changes), residual)


def _feed(x: Any = None, **changes: Any) -> Misuse:
    given = {
        "gate": _weight(INNER, HIDDEN),
        "up": _weight(INNER, HIDDEN),
        "down": _weight(HIDDEN, INNER),
        "norm": _norm(HIDDEN),
    } | changes
    x = _zeros(3, HIDDEN) if x is None else x
    return lambda kernels: kernels.feed_forward(
        x, FeedForward(**given | {"down": Addition(given["down"])})
    )


def _read_only(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    array.flags.writeable = False
    return array


def _misaligned(*shape: int) -> np.ndarray[Any, Any]:
    return np.zeros(4 * int(np.prod(shape)) + 1, np.uint8)[1:].view(np.float32).reshape(shape)


def _layer(
    *, dim: int = DIM, output: Weight | None = None, hidden: int = HIDDEN, rows: int = HQ * DIM
) -> Layer:
    heads = tuple(_weight(each, HIDDEN) for each in (rows, HKV * DIM, HKV * DIM))
    return Layer(
        Inputs(heads, dim=dim),
        Addition(output or _weight(HIDDEN, rows)),
        FeedForward(
            _weight(INNER, hidden), _weight(INNER, hidden), Addition(_weight(hidden, INNER))
        ),
    )


def _step(**changes: int) -> structs.TierStep:
    given = {"batch": 1, "queries": 2, "length": 2, "heads": HQ, "kv_heads": HKV, "dim": DIM}
    return structs.TierStep(**given | changes)


def _layers(
    x: Any = None,
    *,
    steps: tuple[list[structs.TierStep], ...] = ([_step()],),
    caches: int = 1,
    layers: tuple[Layer, ...] = (_layer(),),
    done: int = 0,
    starts: tuple[int, ...] = (0,),
) -> Misuse:
    memories = [structs.TierMemory()] * caches
    given = _zeros(1, 2, HIDDEN) if x is None else x
    arrays = {id(each): (structs.TierStep * len(each))(*each) for each in steps}
    return lambda kernels: kernels.layers(
        [arrays[id(each)] for each in steps], starts, Layers(layers), memories, given, c_int64(done)
    )


STRIPED = _zeros(8, 2 * HIDDEN)[:, ::2]
MISUSES: dict[str, Misuse] = {
    "data of another dtype": _weight_of(6, 34, dtype=np.int8),
    "data of one axis": _weight_of(68),
    "data in part": _weight_of(6, 68, cut=np.s_[:, ::2]),
    "data of half a block": _weight_of(6, 51),
    "product: dtype": lambda k: k.linear(_zeros(3, 64, dtype=np.float64), _weight(5, 64)),
    "product: columns": lambda k: k.linear(_zeros(3, 32), _weight(5, 64)),
    "product: sequences": lambda k: k.linear(_zeros(3, 64), _weight(5, 64), length=2),
    "product: no tokens": lambda k: k.linear(_zeros(3, 64), _weight(5, 64), length=0),
    "product: one axis": lambda k: k.linear(_zeros(64), _weight(5, 64)),
    "product: in part": lambda k: k.linear(STRIPED, _weight(5, 64)),
    "product: misaligned": lambda k: k.linear(_misaligned(3, 64), _weight(5, 64)),
    "product: bias": lambda _: _weight(5, 64, added=_zeros(4)),
    "product: bias's dtype": lambda _: _weight(5, 64, added=_zeros(5, dtype=np.float16)),
    "sum: rows": _add(_zeros(3, 64), _zeros(2, 5)),
    "sum: columns": _add(_zeros(3, 64), _zeros(3, 4)),
    "sum: dtype": _add(_zeros(3, 64), _zeros(3, 5, dtype=np.float16)),
    "sum: norm": _add(_zeros(3, 64), _zeros(3, 5), norm=_norm(64)),
    "norm: columns": lambda k: k.normalize(_zeros(3, 32), RowNorm(_norm(64))),
    "norm: in part": lambda k: k.normalize(STRIPED, RowNorm(_norm(64))),
    "inputs: x": _inputs(_zeros(1, 3, 32)),
    "inputs: two axes": _inputs(_zeros(3, HIDDEN)),
    "inputs: x in part": _inputs(_zeros(1, 6, HIDDEN)[:, ::2]),
    "inputs: norm": _inputs(norm=_norm(HIDDEN - 1)),
    "inputs: norm's axes": _inputs(norm=_norm(1, HIDDEN)),
    "inputs: norm's dtype": _inputs(norm=_norm(HIDDEN, dtype=np.float64)),
    "inputs: norm of queries": _inputs(query_norm=_norm(32)),
    "inputs: norm of keys": _inputs(key_norm=_norm(HQ * 16)),
    "inputs: a norm of nothing": _inputs(key_norm=_norm(0)),
    "inputs: one weight": _inputs(weights=(_weight(64, 64), _weight(32, 32), _weight(32, 32))),
    "inputs: values unlike keys": _inputs(
        weights=(_weight(64, 64), _weight(32, 64), _weight(48, 64))
    ),
    "inputs: part of a head": _inputs(dim=24),
    "inputs: no head": _inputs(dim=0),
    "inputs: periods": _inputs(rope=Rope(periods=np.ones(9), apart=True)),
    "inputs: periods' dtype": _inputs(rope=Rope(periods=np.ones(8, np.float32))),
    "inputs: factors": _inputs(query_factors=_zeros(8)),
    "inputs: factors' dtype": _inputs(query_factors=_zeros(16, dtype=np.float16)),
    "inputs: span": _inputs(temperature=Temperature(scale=0.1, span=0)),
    "inputs: positions": _inputs(starts=(0, 1)),
    "inputs: no position": _inputs(starts=()),
    "feed-forward: x": _feed(_zeros(3, 32)),
    "feed-forward: x in part": _feed(STRIPED),
    "feed-forward: norm": _feed(norm=_norm(2)),
    "feed-forward: gate": _feed(gate=_weight(64, HIDDEN)),
    "feed-forward: up": _feed(up=_weight(INNER, 32)),
    "feed-forward: down": _feed(down=_weight(HIDDEN, 64)),
    "layer: output": lambda _: _layer(output=_weight(HIDDEN, HKV * DIM)),
    "layer: output's rows": lambda _: _layer(output=_weight(32, HQ * DIM)),
    "layer: feed-forward": lambda _: _layer(hidden=32),
    "layers: x": _layers(_zeros(1, 2, 32)),
    "layers: length": _layers(_zeros(1, 3, HIDDEN)),
    "layers: x's dtype": _layers(_zeros(1, 2, HIDDEN, dtype=np.float16)),
    "layers: all ran": _layers(done=1),
    "layers: positions": _layers(starts=(0, 0)),
    "layers: fewer than none ran": _layers(done=-1),
    "layers: read-only": _layers(_read_only(_zeros(1, 2, HIDDEN))),
    "layers: caches": _layers(caches=2),
    "layers: steps": _layers(steps=([_step()],) * 2),
    "layers: steps of a layer": _layers(
        steps=([_step()], [_step()] * 2), layers=(_layer(),) * 2, caches=2
    ),
    "layers: step of another length": _layers(
        steps=([_step()], [_step(queries=3, length=3)]), layers=(_layer(),) * 2, caches=2
    ),
    "layers: queries": _layers(steps=([_step(queries=1)],)),
    "layers: heads": _layers(steps=([_step(heads=2 * HQ)],)),
    "layers: numbers of a head": _layers(layers=(_layer(dim=16),)),
    "layers: one unlike the others": _layers(
        steps=([_step()],) * 2, layers=(_layer(), _layer(rows=2 * HQ * DIM)), caches=2
    ),
}


@pytest.mark.parametrize("misuse", MISUSES.values(), ids=MISUSES)
def test_it_is_refused_in_one_line(kernels: Kernels, misuse: Misuse) -> None:
    with pytest.raises(CacheError) as caught:
        misuse(kernels)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "use",
    [
        _weight_of(6, 68),
        _inputs(),
        _add(_zeros(3, 64), _zeros(3, 5), norm=_norm(5)),
        _feed(),
        lambda _: _layer(),
    ],
)
def test_what_the_misuses_are_made_from_is_taken(kernels: Kernels, use: Misuse) -> None:
    use(kernels)
