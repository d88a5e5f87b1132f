"""All layers in one native call, against the same kernels called step by step."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from kvcache import (
    Backend,
    CacheConfig,
    CacheError,
    HotDtype,
    RowsKVCache,
    TwoTierKVCache,
    make_prompt_cache,
    resolve,
    set_policy,
)
from kvcache.native import codec as cpu_codec
from kvcache.native.library import Library
from kvcache.prompt_cache import from_plan, rows_from_plan
from kvcache.tiers import cpu as cpu_tiers
from kvcache.tiers.cpu import CpuTiers
from models import load, loader
from models.gguf.tensor_types import TensorType
from models.native.kernels import Kernels
from models.network import cpu_llama
from models.network.cpu_llama import CpuModel
from models.network.llama import StepStoppedError
from tests.gguf_factory import LlamaShape, every_matrix, sentencepiece_tokenizer, write_llama

SHAPE = LlamaShape(layers=3, width=96, ffn=160, heads=6, kv_heads=2, vocab=311, context=4000)
STEPS = (2, 1, 70, 1, 1, 5, 33, 1, 130, 1, 1, 40, 1)


@pytest.fixture(scope="module")
def model(
    library: Library, kernels: Kernels, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CpuModel]:
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    write_llama(
        path,
        config=SHAPE,
        types=every_matrix(TensorType.Q8_0),
        tokenizer_metadata=sentencepiece_tokenizer(SHAPE.vocab),
        seed=5,
    )
    with pytest.MonkeyPatch.context() as patch:
        # The steps by the same kernels, so that no rounding differs.
        patch.setattr(loader, "kernels", lambda: kernels)
        patch.setattr(cpu_tiers, "library", lambda: library)
        patch.setattr(cpu_codec, "library", lambda: library)
        model = load(path, backend=Backend.CPU).model
        assert isinstance(model, CpuModel)
        yield model


def _outputs(
    model: CpuModel, cache: list[TwoTierKVCache] | list[RowsKVCache], *, batch: int, at_once: bool
) -> list[np.ndarray]:
    """States after each step."""
    start, outputs = 0, []
    for length in STEPS:
        ids = mx.array(
            [
                [(7 * i + 3 * row) % 311 for i in range(start, start + length)]
                for row in range(batch)
            ]
        )
        x = model.embed(ids)
        through = model.through_layers if at_once else super(CpuModel, model).through_layers
        x = through(x, cache)
        outputs.append(np.array(x))
        start += length
    return outputs


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("dtype", list(HotDtype))
@pytest.mark.parametrize(
    "policy",
    [
        {"keys": "f16", "values": "f16", "hot": 20, "block": 16},
        {"keys": "hkivi5", "values": "turbo3u", "hot": 20, "block": 32},
        {"keys": "h8", "values": "h8", "hot": 0, "block": 16, "sinks": 0},
        {"keys": "hkivi4", "values": "q8", "hot": 3, "block": 32, "keep": 11, "temperature": 1.3},
    ],
)
def test_at_once_is_step_by_step(
    model: CpuModel, policy: dict[str, Any], dtype: HotDtype, batch: int
) -> None:
    config = CacheConfig(max_tokens=190, hot_dtype=dtype, backend=Backend.CPU, **policy)
    once, steps = make_prompt_cache(model, config), make_prompt_cache(model, config)
    lossless = policy["keys"] == policy["values"] == "f16"
    got = _outputs(model, once, batch=batch, at_once=True)
    want = _outputs(model, steps, batch=batch, at_once=False)
    for one, other in zip(got, want, strict=True):
        # Encoded keys and values may round the other way where they lie between two levels.
        size, difference = np.abs(other).mean(), np.abs(one - other)
        assert difference.mean() < 2e-2 * size
        assert difference.max() < 0.2 * size or not lossless
    assert [layer.stats() for layer in once] == [layer.stats() for layer in steps]
    assert once[0].stats().evicted > 0
    for layer, other_layer in zip(once, steps, strict=True):
        keys, other_keys = (
            np.array(cache.keys().astype(mx.float32)) for cache in (layer, other_layer)
        )
        assert np.abs(keys - other_keys).mean() < 1e-2 * np.abs(other_keys).max()


@pytest.mark.parametrize(
    "policy",
    [
        {"keys": "f16", "values": "f16", "hot": 7, "block": 16},
        {"keys": "hkivi5", "values": "turbo3u", "hot": 20, "block": 32},
        {"keys": "hkivi4", "values": "q8", "hot": 3, "block": 32, "keep": 11, "temperature": 1.3},
    ],
)
@pytest.mark.parametrize("dtype", list(HotDtype))
def test_a_few_together_are_to_the_last_bit_what_they_are_alone(
    model: CpuModel, policy: dict[str, Any], dtype: HotDtype
) -> None:
    """While they have room in the hot ring; from nothing held to tokens that were let go."""
    config = CacheConfig(max_tokens=120, hot_dtype=dtype, backend=Backend.CPU, **policy)
    together, alone = make_prompt_cache(model, config), make_prompt_cache(model, config)
    at = 0
    while at < 230:
        count = max(1, min(at % 8 + 1, together[0].room))
        x = mx.random.normal((1, count, SHAPE.width), key=mx.random.key(at))
        got = np.array(model.through_layers(x, together))
        for row in range(count):
            one = np.array(model.through_layers(x[:, row : row + 1], alone))
            np.testing.assert_array_equal(got[:, row], one[:, 0])
        at += count
    assert together[0].stats().evicted > 0
    assert [layer.stats() for layer in together] == [layer.stats() for layer in alone]


def test_at_once_is_step_by_step_after_a_change_of_blocks(model: CpuModel) -> None:
    config = CacheConfig(
        max_tokens=190, hot=20, block=32, keys="f16", values="f16", hot_dtype=HotDtype.F32
    )
    once, steps = make_prompt_cache(model, config), make_prompt_cache(model, config)
    for cache, at_once in ((once, True), (steps, False)):
        _outputs(model, cache, batch=1, at_once=at_once)
        set_policy(cache, resolve(replace(config, max_tokens=300, block=80), model.shape))
    assert once[0].stats().evicted % 80
    got = _outputs(model, once, batch=1, at_once=True)
    want = _outputs(model, steps, batch=1, at_once=False)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, atol=5e-3)
    assert [layer.stats() for layer in once] == [layer.stats() for layer in steps]


def _rows(model: CpuModel, padding: list[int], **policy: Any) -> list[RowsKVCache]:
    config = CacheConfig(max_tokens=190, hot=20, block=32, backend=Backend.CPU, **policy)
    return rows_from_plan(resolve(config, model.shape), model.rotations, left_padding=padding)


@pytest.mark.parametrize("codec", ["f16", "q8"])
def test_rows_at_once_are_rows_step_by_step(model: CpuModel, codec: str) -> None:
    padding = [0, 37, 3]
    once, steps = (_rows(model, padding, keys=codec, values=codec) for _ in range(2))
    got = _outputs(model, once, batch=3, at_once=True)
    want = _outputs(model, steps, batch=3, at_once=False)
    start = 0
    for one, other in zip(got, want, strict=True):
        for row, ahead in enumerate(padding):
            own, wanted = (x[row, max(0, ahead - start) :] for x in (one, other))
            np.testing.assert_allclose(own, wanted, atol=2e-2 * np.abs(other).max())
        start += one.shape[1]
    for layer, other_layer in zip(once, steps, strict=True):
        assert layer.positions == other_layer.positions == tuple(start - n for n in padding)
        assert layer.stats() == other_layer.stats()
        assert [row.ledger for row in layer.rows] == [row.ledger for row in other_layer.rows]
    assert len({row.ledger.evicted for row in once[0].rows}) == 2


def _mixed(model: CpuModel) -> list[TwoTierKVCache]:
    """Layers with windows, in one tier and in two, around one that sees all."""
    config = CacheConfig(
        max_tokens=190, hot=20, block=16, keys="f16", values="f16", hot_dtype=HotDtype.F32
    )
    shape = replace(model.shape, windows=(5, None, 61))
    return from_plan(resolve(config, shape), model.rotations)


def test_layers_of_different_windows_at_once(
    model: CpuModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    once, steps = _mixed(model), _mixed(model)
    want = _outputs(model, steps, batch=1, at_once=False)
    monkeypatch.setattr(CpuTiers, "attend", _fail)
    got = _outputs(model, once, batch=1, at_once=True)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, atol=5e-3)
    assert [layer.stats() for layer in once] == [layer.stats() for layer in steps]
    assert len({layer.stats().evicted for layer in once}) == 3


def _fail(*_: object, **__: object) -> None:
    raise AssertionError("a layer was attended by itself")


def test_one_call_really_runs_all_layers(model: CpuModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = _rows(model, [0, 1, 2])
    model.through_layers(mx.zeros((3, 2, SHAPE.width)), rows)
    monkeypatch.setattr(CpuTiers, "attend", _fail)
    cache = make_prompt_cache(model, CacheConfig(max_tokens=190, hot=20, block=32))
    _outputs(model, cache, batch=1, at_once=True)
    assert {layer.offset for layer in cache} == {sum(STEPS)}
    _outputs(model, rows, batch=3, at_once=True)
    assert {layer.positions for layer in rows} == {tuple(sum(STEPS) + more for more in (2, 1, 0))}


def test_without_a_native_form_layers_run_one_by_one(model: CpuModel) -> None:
    config = CacheConfig(max_tokens=190, hot=20, block=32, values="turbo4p")
    once, steps = make_prompt_cache(model, config), make_prompt_cache(model, config)
    got = _outputs(model, once, batch=1, at_once=True)
    want = _outputs(model, steps, batch=1, at_once=False)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(one, other)


def test_numbers_beyond_the_hot_dtype_are_refused(model: CpuModel) -> None:
    cache = make_prompt_cache(model, CacheConfig(max_tokens=190, hot=20, block=32))
    x = mx.random.normal((1, 2, SHAPE.width), key=mx.random.key(1))
    model.through_layers(x, cache)
    with pytest.raises(CacheError, match="beyond what f16 holds"):
        model.through_layers(mx.full((1, 1, SHAPE.width), mx.nan), cache)
    assert [layer.offset for layer in cache] == [2, 2, 2]


@pytest.mark.parametrize("row", [0, 1])
def test_what_one_row_refuses_no_row_takes(model: CpuModel, row: int) -> None:
    cache = _rows(model, [0, 0])
    x = np.zeros((2, 1, SHAPE.width), np.float32)
    model.through_layers(mx.array(x), cache)
    x[row] = np.nan
    with pytest.raises(CacheError, match="beyond what f16 holds"):
        model.through_layers(mx.array(x), cache)
    assert [layer.offset for layer in cache] == [1, 1, 1]
    assert {each.offset for layer in cache for each in layer.rows} == {1}


def test_rows_may_be_at_different_positions(model: CpuModel) -> None:
    x = mx.random.normal((2, 1, SHAPE.width), key=mx.random.key(1))
    once, steps = _rows(model, [0, 0]), _rows(model, [0, 0])
    for cache in (once, steps):
        _outputs(model, cache, batch=2, at_once=True)
        for layer in cache:
            layer.rows[1].rewind(1)
    got = model.through_layers(x, once)
    want = super(CpuModel, model).through_layers(x, steps)
    np.testing.assert_array_equal(np.asarray(got), np.asarray(want))
    assert {layer.positions for layer in once} == {(sum(STEPS) + 1, sum(STEPS))}


def test_layers_that_differ_run_one_by_one(model: CpuModel) -> None:
    cache = make_prompt_cache(model, CacheConfig(max_tokens=190, hot=20, block=32))
    _outputs(model, cache, batch=1, at_once=True)
    cache[1].rewind(1)
    x = mx.random.normal((1, 1, SHAPE.width), key=mx.random.key(1))
    model.through_layers(x, cache)
    assert [layer.offset for layer in cache] == [sum(STEPS) + 1, sum(STEPS), sum(STEPS) + 1]


@pytest.mark.parametrize(
    ("policy", "lengths"),
    [
        ({"keys": "hkivi5", "values": "turbo3u"}, ()),  # nothing held
        ({"keys": "hkivi5", "values": "turbo3u"}, (30, 5)),  # room for all
        ({"keys": "f16", "values": "f16"}, ()),  # some of the first step are encoded
        ({"keys": "f16", "values": "f16"}, (30, 70)),  # some are encoded
        ({"keys": "f16", "values": "f16", "keep": 11}, (70, 170, 90)),  # and some let go
    ],
)
@pytest.mark.parametrize("asked", [1, 2])
def test_a_step_that_is_stopped_leaves_no_token(
    model: CpuModel,
    monkeypatch: pytest.MonkeyPatch,
    policy: dict[str, Any],
    lengths: tuple[int, ...],
    asked: int,
) -> None:
    config = CacheConfig(max_tokens=190, hot=20, block=32, hot_dtype=HotDtype.F32, **policy)
    stopped, whole = make_prompt_cache(model, config), make_prompt_cache(model, config)
    x = mx.random.normal((1, 900, SHAPE.width), key=mx.random.key(7))
    for cache in (stopped, whole):
        at = 0
        for length in lengths:
            model.through_layers(x[:, at : at + length], cache)
            at += length
    before, new = stopped[0].ledger, 15 if policy["keys"] == "hkivi5" else 60
    answers = iter([False] * (asked - 1) + [True])
    with monkeypatch.context() as patch:
        patch.setattr(cpu_llama, "_PATIENCE", 0.0)
        with pytest.raises(StepStoppedError):
            model.through_layers(x[:, at : at + new], stopped, lambda: next(answers))
    assert next(answers, None) is None
    (ledger,) = {cache.ledger for cache in stopped}
    assert ledger == before or new > before.room
    assert at - ledger.total < config.hot + config.block
    if ledger != before:
        assert (ledger.total, ledger.end) == (before.hot_start, before.end)
        model.through_layers(x[:, ledger.total : at], stopped)
    monkeypatch.setattr(CpuTiers, "attend", _fail)  # layers are still alike
    if ledger.evicted > before.evicted:
        model.through_layers(x[:, at : at + 300], stopped)
        return
    # From there on all is as if it had not been.
    for start in range(at, at + 300, 60):
        got = np.array(model.through_layers(x[:, start : start + 60], stopped))
        want = np.array(model.through_layers(x[:, start : start + 60], whole))
        np.testing.assert_allclose(got, want, atol=5e-3)


def test_a_stopped_step_of_windows_takes_all_layers_to_one_token(
    model: CpuModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, x = _mixed(model), mx.random.normal((1, 400, SHAPE.width), key=mx.random.key(7))
    model.through_layers(x[:, :100], cache)
    monkeypatch.setattr(cpu_llama, "_PATIENCE", 0.0)
    with pytest.raises(StepStoppedError):
        model.through_layers(x[:, 100:], cache, lambda: True)
    (offset,) = {layer.offset for layer in cache}
    assert offset <= 100
    anew = _mixed(model)
    got, want = (model.through_layers(x[:, offset:], each) for each in (cache, anew))
    assert offset or np.array_equal(np.asarray(got), np.asarray(want))


def test_a_stopped_batch_tells_how_far_each_layer_is(
    model: CpuModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, x = _rows(model, [0, 0]), mx.zeros((2, 3, SHAPE.width))
    monkeypatch.setattr(cpu_llama, "_PATIENCE", 0.0)
    with pytest.raises(StepStoppedError):
        model.through_layers(x, cache, lambda: True)
    assert [layer.offset for layer in cache] == [3, 0, 0]


def test_no_layer_is_asked_about_in_a_short_step(model: CpuModel) -> None:
    cache = make_prompt_cache(model, CacheConfig(max_tokens=190, hot=20, block=32))
    model.through_layers(mx.zeros((1, 3, SHAPE.width)), cache, lambda: pytest.fail("asked"))
    assert {layer.offset for layer in cache} == {3}


@pytest.mark.parametrize("change", [{"temperature": 1.7}, {"turn_sinks": False}])
def test_layers_of_another_policy_keep_it(model: CpuModel, change: dict[str, Any]) -> None:
    config = CacheConfig(max_tokens=190, hot=20, block=32, keys="f16", values="f16")
    once, steps = (
        [
            *make_prompt_cache(model, config)[:2],
            make_prompt_cache(model, replace(config, **change))[2],
        ]
        for _ in range(2)
    )
    got = _outputs(model, once, batch=1, at_once=True)
    want = _outputs(model, steps, batch=1, at_once=False)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, atol=5e-3)
