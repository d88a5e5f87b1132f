"""Whatever the wrappers are given, nothing but what they say they read or write is touched."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kvcache import CacheError
from kvcache.native import structs
from models.native.kernels import Kernels
from models.native.packed import Layer, Weight

HKV, HQ, DIM = 2, 4, 32
HIDDEN, INNER = 64, 96
TURNS = np.ones(DIM // 2)
Misuse = Callable[[Kernels], object]


def _zeros(*shape: int, dtype: type = np.float32) -> np.ndarray[Any, Any]:
    return np.zeros(shape, dtype)


def _weight(rows: int, columns: int) -> Weight:
    scales = _zeros(rows, columns // 32, dtype=np.float16)
    return Weight(_zeros(rows, columns // 4, dtype=np.uint32), scales, scales, bits=8, group=32)


def _weight_of(
    codes: tuple[int, ...] = (6, 16),
    scales: tuple[int, ...] = (6, 2),
    *,
    dtype: type = np.uint32,
    of: type = np.float16,
    cut: Any = np.s_[:],
    bits: int = 8,
) -> Misuse:
    return lambda _: Weight(
        _zeros(*codes, dtype=dtype)[cut],
        _zeros(*scales, dtype=of),
        _zeros(6, 2, dtype=np.float16),
        bits=bits,
        group=32,
    )


def _inputs(**changes: Any) -> Misuse:
    given = {
        "x": _zeros(1, 3, HIDDEN),
        "norm": _zeros(HIDDEN),
        "eps": 1e-5,
        "weights": tuple(_weight(rows, HIDDEN) for rows in (HQ * 16, HKV * 16, HKV * 16)),
        "dim": 16,
        "periods": np.ones(8),
        "offset": 0,
    } | changes
    x, norm, eps, weights = (given.pop(name) for name in ("x", "norm", "eps", "weights"))
    return lambda kernels: kernels.attention_inputs(x, norm, eps, weights, **given)


def _feed(**changes: Any) -> Misuse:
    given = {
        "x": _zeros(3, HIDDEN),
        "norm": _zeros(HIDDEN),
        "gate": _weight(INNER, HIDDEN),
        "up": _weight(INNER, HIDDEN),
        "down": _weight(HIDDEN, INNER),
    } | changes
    return lambda kernels: kernels.feed_forward(eps=1e-5, **given)


def _read_only(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    array.flags.writeable = False
    return array


def _misaligned(*shape: int) -> np.ndarray[Any, Any]:
    return np.zeros(4 * int(np.prod(shape)) + 1, np.uint8)[1:].view(np.float32).reshape(shape)


def _layer(**changes: Weight) -> Layer:
    w = {
        "q": _weight(HQ * DIM, HIDDEN),
        "k": _weight(HKV * DIM, HIDDEN),
        "v": _weight(HKV * DIM, HIDDEN),
        "output": _weight(HIDDEN, HQ * DIM),
        "gate": _weight(INNER, HIDDEN),
        "up": _weight(INNER, HIDDEN),
        "down": _weight(HIDDEN, INNER),
    } | changes
    norms = [(_zeros(HIDDEN), 1e-5)] * 2
    return Layer(norms, (w["q"], w["k"], w["v"], w["output"]), (w["gate"], w["up"], w["down"]))


def _layers(x: Any = None, *, caches: int = 1, heads: int = HQ, periods: Any = TURNS) -> Misuse:
    step = structs.TierStep(batch=1, queries=2, length=2, heads=heads, kv_heads=HKV, dim=DIM)
    memories = [structs.TierMemory()] * caches
    given = _zeros(1, 2, HIDDEN) if x is None else x
    return lambda kernels: kernels.layers([step], 0, periods, [_layer()], memories, given)


STRIPED = _zeros(8, 2 * HIDDEN)[:, ::2]
MISUSES: dict[str, Misuse] = {
    "codes of another dtype": _weight_of(dtype=np.int32),
    "codes of one axis": _weight_of((96,)),
    "codes in part": _weight_of((6, 32), cut=np.s_[:, ::2]),
    "codes of half a group": _weight_of((6, 12)),
    "bits that do not fill words": _weight_of((6, 7), bits=6),
    "scales of another dtype": _weight_of(of=np.float32),
    "too few scales": _weight_of(scales=(5, 2)),
    "too few groups": _weight_of(scales=(6, 1)),
    "product: dtype": lambda k: k.linear(_zeros(3, 64, dtype=np.float64), _weight(5, 64)),
    "product: columns": lambda k: k.linear(_zeros(3, 32), _weight(5, 64)),
    "product: one axis": lambda k: k.linear(_zeros(64), _weight(5, 64)),
    "product: in part": lambda k: k.linear(STRIPED, _weight(5, 64)),
    "product: misaligned": lambda k: k.linear(_misaligned(3, 64), _weight(5, 64)),
    "sum: rows": lambda k: k.linear_add(_zeros(3, 64), _weight(5, 64), _zeros(2, 5)),
    "sum: columns": lambda k: k.linear_add(_zeros(3, 64), _weight(5, 64), _zeros(3, 4)),
    "sum: dtype": lambda k: k.linear_add(
        _zeros(3, 64), _weight(5, 64), _zeros(3, 5, dtype=np.float16)
    ),
    "inputs: x": _inputs(x=_zeros(1, 3, 32)),
    "inputs: two axes": _inputs(x=_zeros(3, HIDDEN)),
    "inputs: x in part": _inputs(x=_zeros(1, 6, HIDDEN)[:, ::2]),
    "inputs: norm": _inputs(norm=_zeros(HIDDEN - 1)),
    "inputs: norm's dtype": _inputs(norm=_zeros(HIDDEN, dtype=np.float64)),
    "inputs: one weight": _inputs(weights=(_weight(64, 64), _weight(32, 32), _weight(32, 32))),
    "inputs: values unlike keys": _inputs(
        weights=(_weight(64, 64), _weight(32, 64), _weight(48, 64))
    ),
    "inputs: part of a head": _inputs(dim=24),
    "inputs: no head": _inputs(dim=0),
    "inputs: periods": _inputs(periods=np.ones(9)),
    "inputs: periods' dtype": _inputs(periods=np.ones(8, np.float32)),
    "inputs: position": _inputs(offset=-1),
    "feed-forward: x": _feed(x=_zeros(3, 32)),
    "feed-forward: x in part": _feed(x=STRIPED),
    "feed-forward: norm": _feed(norm=_zeros(2)),
    "feed-forward: gate": _feed(gate=_weight(64, HIDDEN)),
    "feed-forward: up": _feed(up=_weight(INNER, 32)),
    "feed-forward: down": _feed(down=_weight(HIDDEN, 64)),
    "layer: values": lambda _: _layer(v=_weight(DIM, HIDDEN)),
    "layer: output": lambda _: _layer(output=_weight(HIDDEN, HKV * DIM)),
    "layer: keys": lambda _: _layer(k=_weight(HKV * DIM, 32), v=_weight(HKV * DIM, 32)),
    "layer: down": lambda _: _layer(down=_weight(HIDDEN, HIDDEN)),
    "layers: x": _layers(_zeros(1, 2, 32)),
    "layers: length": _layers(_zeros(1, 3, HIDDEN)),
    "layers: x's dtype": _layers(_zeros(1, 2, HIDDEN, dtype=np.float16)),
    "layers: read-only": _layers(_read_only(_zeros(1, 2, HIDDEN))),
    "layers: caches": _layers(caches=2),
    "layers: heads": _layers(heads=2 * HQ),
    "layers: periods": _layers(periods=np.ones(DIM // 2 + 1)),
    "layers: periods' dtype": _layers(periods=np.ones(8, np.float32)),
}


@pytest.mark.parametrize("misuse", MISUSES.values(), ids=MISUSES)
def test_it_is_refused_in_one_line(kernels: Kernels, misuse: Misuse) -> None:
    with pytest.raises(CacheError) as caught:
        misuse(kernels)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "use",
    [
        _weight_of(),
        _inputs(),
        _feed(),
        lambda _: _layer(),
    ],
)
def test_what_the_misuses_are_made_from_is_taken(kernels: Kernels, use: Misuse) -> None:
    use(kernels)
