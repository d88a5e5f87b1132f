"""The network is defined twice, in plain MLX and for the CPU kernels: both say the same."""

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from kvcache import (
    Backend,
    CacheConfig,
    DynamicKVCache,
    HotDtype,
    RowsKVCache,
    make_prompt_cache,
    resolve,
)
from kvcache.prompt_cache import rows_from_plan
from models.gguf.tensor import Tensor
from models.gguf.tensor_types import TensorType
from models.native.kernels import Kernels
from models.network import shapes
from models.network.config import NetworkConfig
from models.network.cpu_llama import CpuModel, hold_in_place
from models.network.llama import Model
from models.network.rope import Yarn
from models.network.switches import Activation, NormOf, Switches
from models.network.weights import Weights
from tests.gguf_factory import TypeChoice, every_matrix, random_tensor
from tests.models.gguf.blocks import of_floats

VOCABULARY = 131
STEPS = (1, 70, 1, 2, 9, 8, 1)
CONFIG = NetworkConfig(
    layers=3,
    hidden=96,
    ffn=160,
    heads=6,
    kv_heads=2,
    head_dim=32,
    context=1000,
    norm_eps=1e-5,
    rope_dims=26,
    rope_base=10000.0,
    rope_factor=1.5,
)
# Of the largest output: the kernels take activations in 15 bits, one layer after the other.
TOLERANCE = 1e-3


Q8 = every_matrix(TensorType.Q8_0)
POLICY = CacheConfig(max_tokens=500, hot_dtype=HotDtype.F32, backend=Backend.CPU)
# Tokens move between tiers and are let go, unencoded, so that both hold the same.
SMALL = replace(POLICY, max_tokens=150, hot=20, block=16, keys="f16", values="f16")
LONG = (1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 197, 1)
FEW = (7, 1, 5, 173, 2, 1)


def _with(**switches: Any) -> dict[str, Any]:
    return {"switches": Switches(**switches)}


HEAD, ROW = NormOf.HEAD, NormOf.ROW
YARN = {"yarn": Yarn(original=100), "rope_factor": 4.0}
# As the architectures have them.
SETS: dict[str, dict[str, Any]] = {
    "mistral3": {**YARN, **_with(temperature_scale=0.3, temperature_span=29)},
    "qwen2": {**_with(half_split=True), "biases": True},
    "qwen3": _with(half_split=True, query_key_norm=HEAD),
    "gemma3": {
        **_with(
            half_split=True,
            query_key_norm=HEAD,
            post_norms=True,
            activation=Activation.GELU_TANH,
            window=37,
            windowed=frozenset({0, 2}),
            window_rope_base=100.0,
            embedding_scale=96**0.5,
        ),
        "rope_dims": 32,
    },
    "phi3": {**_with(half_split=True), "rope_magnitude": 1.19},
    "smollm3": _with(unturned=frozenset({1})),
    "granite": _with(
        attention_scale=0.05, embedding_scale=12.0, residual_scale=0.22, logit_divisor=8.0
    ),
    "olmo2": _with(half_split=True, query_key_norm=ROW, pre_norms=False, post_norms=True),
    "olmo3": _with(
        half_split=True,
        query_key_norm=ROW,
        pre_norms=False,
        post_norms=True,
        window=41,
        windowed=frozenset({0, 1}),
        window_rope_base=10000.0,
    ),
}
SWITCHED: dict[str, dict[str, Any]] = {
    "half-split": _with(half_split=True),
    "half-split, whole": {**_with(half_split=True), "rope_dims": 32},
    "unturned": _with(unturned=frozenset({0, 1, 2})),
    "unturned with magnitude": {
        **_with(unturned=frozenset({1})),
        "rope_magnitude": 1.3,
        "rope_dims": 32,
    },
    "magnitude": {"rope_magnitude": 1.3},
    "norms of heads": _with(query_key_norm=HEAD),
    "norms of rows": _with(query_key_norm=ROW),
    "norms before and after": _with(post_norms=True),
    "norms after": _with(pre_norms=False, post_norms=True),
    "no norms": _with(pre_norms=False),
    "GELU": _with(activation=Activation.GELU_TANH),
    "attention scale": _with(attention_scale=0.3),
    "embedding scale": _with(embedding_scale=9.7),
    "residual scale": _with(residual_scale=0.3),
    "logit divisor": _with(logit_divisor=5.0),
    "logit cap": _with(logit_cap=5.0),
    "temperature": _with(temperature_scale=0.4, temperature_span=7),
    "yarn": YARN,
    "window": _with(window=37, windowed=frozenset({1})),
    "windows only": _with(window=5, windowed=frozenset({0, 1, 2}), window_rope_base=50.0),
    "head dimension 80": {"head_dim": 80, "rope_dims": 80},
    "head dimension 256": {
        **_with(half_split=True, query_key_norm=HEAD),
        "head_dim": 256,
        "rope_dims": 192,
        "heads": 3,
        "kv_heads": 1,
    },
    **SETS,
}


# A fast path each, and one of floats; columns fill no block of 256.
KINDS = TensorType.Q4_1, TensorType.Q5_1, TensorType.Q8_0, TensorType.F16


def _mixed(name: str) -> TensorType:
    """Matrices of one step of different types."""
    return KINDS[(3 * len(name) + sum(map(int, filter(str.isdigit, name)))) % len(KINDS)]


def _weights(
    types: TypeChoice,
    config: NetworkConfig = CONFIG,
    *,
    biases: bool = False,
    without: str = "rope_factors_",
) -> dict[str, Tensor]:
    """without: how the names of optional tensors begin that the file has not got."""
    rng, tensors = np.random.default_rng(3), dict[str, Tensor]()
    for expected in shapes._network(config, VOCABULARY):
        name, shape = expected.name, expected.shape
        if name.endswith(".bias"):
            if biases:
                tensors[name] = of_floats(name, rng.normal(size=shape).astype(np.float32))
            continue
        if expected.optional and name.startswith(without):
            continue
        kind = types(name) if len(shape) == 2 else TensorType.F32
        rows = random_tensor(shape, kind, rng).reshape(prod(shape[:-1]), -1)
        tensors[name] = Tensor(name=name, type=kind, shape=shape, data=rows)
    return tensors


def _ids(batch: int, start: int, length: int) -> mx.array:
    at = np.arange(start, start + length) + 17 * np.arange(batch)[:, None]
    return mx.array(at * 29 % VOCABULARY)


def _assert_alike(got: mx.array, want: mx.array) -> None:
    assert got.shape == want.shape
    assert float(mx.abs(got - want).max()) < TOLERANCE * float(mx.abs(want).max())


def _both(
    tensors: dict[str, Tensor], kernels: Kernels, config: NetworkConfig = CONFIG
) -> tuple[CpuModel, Model]:
    held = Weights(tensors, mx.float32, hold_in_place(kernels), joins=False)
    return CpuModel(config, held, kernels), Model(config, Weights(tensors, mx.float32))


def _check(
    fast: CpuModel,
    defined: Model,
    *,
    batch: int = 1,
    lengths: Sequence[int] = STEPS,
    policy: CacheConfig = POLICY,
) -> None:
    """Each layer's output for the same input, and the logits of all."""
    reference = make_prompt_cache(defined, replace(policy, backend=Backend.REFERENCE))
    layer_by_layer, at_once = (make_prompt_cache(fast, policy) for _ in range(2))
    start = 0
    for length in lengths:
        ids = _ids(batch, start, length)
        x = defined.embed(ids)
        _assert_alike(fast.embed(ids), x)
        for n, layer in enumerate(defined.layers):
            wanted = layer(x, reference[n])
            _assert_alike(fast.layers[n](x, layer_by_layer[n]), wanted)
            x = wanted
        _assert_alike(fast(ids, at_once), defined.logits(defined.norm(x)))
        start += length


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("types", [*map(every_matrix, KINDS), _mixed], ids=[*KINDS, "mixed"])
def test_both_definitions_say_the_same(kernels: Kernels, types: TypeChoice, batch: int) -> None:
    _check(*_both(_weights(types), kernels), batch=batch)


@pytest.mark.parametrize("batch", [1, 3])
def test_both_say_the_same_with_biases_and_with_one_table(kernels: Kernels, batch: int) -> None:
    _check(*_both(_weights(Q8, biases=True), kernels), batch=batch)
    _check(*_both(_weights(Q8, without="output"), kernels), batch=batch)


def _switched(name: str, kernels: Kernels) -> tuple[CpuModel, Model]:
    changes = dict(SWITCHED[name])
    biases = bool(changes.pop("biases", False))
    config = replace(CONFIG, **changes)
    return _both(_weights(Q8, config, biases=biases), kernels, config)


@pytest.mark.parametrize("name", SWITCHED)
def test_both_say_the_same_with_switches(
    kernels: Kernels, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, layers = [], kernels.layers

    def counted(*given: Any, **named: Any) -> int:
        calls.append(given)
        return layers(*given, **named)

    monkeypatch.setattr(kernels, "layers", counted)
    _check(*_switched(name, kernels), lengths=LONG, policy=SMALL)
    assert len(calls) == len(LONG)  # all layers at once


@pytest.mark.parametrize("name", SETS)
def test_rows_say_the_same(kernels: Kernels, name: str) -> None:
    fast, defined = _switched(name, kernels)

    def cache(model: Model, backend: Backend) -> list[RowsKVCache]:
        plan = resolve(replace(SMALL, backend=backend), model.shape)
        return rows_from_plan(plan, model.rotations, left_padding=[0, 11, 3])

    at_once, wanted = cache(fast, Backend.CPU), cache(defined, Backend.REFERENCE)
    start = 0
    for length in FEW:
        ids = _ids(3, start, length)
        got, want = fast(ids, at_once), defined(ids, wanted)
        # What queries of padding see is nothing that anybody asks for.
        first = max(0, min(length, 11 - start))
        if first < length:
            _assert_alike(got[:, first:], want[:, first:])
        start += length


@pytest.mark.parametrize("name", SETS)
def test_unencoded_caches_say_the_same(kernels: Kernels, name: str) -> None:
    fast, defined = _switched(name, kernels)

    def caches(backend: Backend) -> list[DynamicKVCache]:
        room = sum(FEW)
        return [DynamicKVCache(room, dtype=HotDtype.F32, backend=backend) for _ in fast.layers]

    held, wanted = caches(Backend.CPU), caches(Backend.REFERENCE)
    start = 0
    for length in FEW:
        ids = _ids(1, start, length)
        _assert_alike(fast(ids, held), defined(ids, wanted))
        start += length
    _assert_alike(fast(ids), defined(ids))


def test_both_turn_as_the_context_wants_it(kernels: Kernels) -> None:
    config = replace(CONFIG, original_context=64, rope_magnitude=1.2)
    fast, defined = _both(_weights(Q8, config, without="rope_freqs"), kernels, config)
    ids, logits = _ids(1, 0, 50), []
    for context in (500, 40):
        for model in (fast, defined):
            model.set_context(context)
        _check(fast, defined, lengths=(50, 1), policy=SMALL)
        logits.append(fast(ids))
    assert float(mx.abs(logits[0] - logits[1]).max()) > 10 * TOLERANCE
