"""The network is defined twice, in plain MLX and for the CPU kernels: both say the same."""

from dataclasses import replace
from math import prod

import mlx.core as mx
import numpy as np
import pytest

from kvcache import Backend, CacheConfig, HotDtype, make_prompt_cache
from models.gguf.header import TensorInfo
from models.gguf.repack import _READERS, _UNQUANTIZED, Quantized, Unquantized, repack
from models.gguf.tensor_types import TensorType
from models.native.kernels import Kernels
from models.network import shapes
from models.network.config import NetworkConfig
from models.network.cpu_llama import CpuModel
from models.network.llama import Model
from models.network.weights import Weights
from tests.gguf_factory import TypeChoice, every_matrix, random_tensor

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
MATRICES = 2 + 7 * CONFIG.layers
# Of the largest output: the kernels take activations in 15 bits, one layer after the other.
TOLERANCE = 1e-3


def _mixed(name: str) -> TypeChoice:
    """A step of each block that plain MLX computes, another in each layer."""
    unquantized = {"blk.0.attn_k.weight", "blk.1.attn_output.weight", "blk.2.ffn_up.weight"}
    return lambda each: TensorType.F16 if each in {*unquantized, name} else TensorType.Q5_1


# What each tensor is stored as, and how many matrices the kernels leave to plain MLX.
PACKED = TensorType.Q4_1, TensorType.Q5_1, TensorType.Q8_0
KINDS: dict[str, tuple[TypeChoice, int]] = {
    **{kind.name: (every_matrix(kind), 0) for kind in PACKED},
    **{kind.name: (every_matrix(kind), MATRICES) for kind in _UNQUANTIZED},
    "in part": (_mixed("output.weight"), 4),
    "but for the table": (_mixed("token_embd.weight"), 4),
}


def _weights(types: TypeChoice, *, biases: bool = False, tied: bool = False) -> Weights:
    rng, tensors = np.random.default_rng(3), dict[str, Quantized | Unquantized]()
    for expected in shapes._network(CONFIG, VOCABULARY):
        name, shape = expected.name, expected.shape
        if name.endswith(".bias"):
            if biases:
                tensors[name] = Unquantized(
                    array=mx.array(rng.normal(size=shape).astype(np.float32))
                )
            continue
        if tied and name == "output.weight":
            continue
        kind = types(name) if len(shape) == 2 else TensorType.F32
        rows = random_tensor(shape, kind, rng).reshape(prod(shape[:-1]), -1)
        info = TensorInfo(name=name, shape=shape, type=kind, offset=0, nbytes=rows.nbytes)
        tensors[name] = repack(info, rows)
    return Weights(tensors, mx.float32)


def _ids(batch: int, start: int, length: int) -> mx.array:
    at = np.arange(start, start + length) + 17 * np.arange(batch)[:, None]
    return mx.array(at * 29 % VOCABULARY)


def _assert_alike(got: mx.array, want: mx.array) -> None:
    assert got.shape == want.shape
    assert float(mx.abs(got - want).max()) < TOLERANCE * float(mx.abs(want).max())


def _check(weights: Weights, kernels: Kernels, *, batch: int, reference_weights: int) -> None:
    """Each layer's output for the same input, and the logits of all."""
    # In this order: `Model` joins weights, and then lets them go.
    fast, defined = CpuModel(CONFIG, weights, kernels), Model(CONFIG, weights)
    assert (defined.reference_weights, fast.reference_weights) == (0, reference_weights)
    policy = CacheConfig(max_tokens=500, hot_dtype=HotDtype.F32, backend=Backend.CPU)
    reference = make_prompt_cache(defined, replace(policy, backend=Backend.REFERENCE))
    layer_by_layer, at_once = (make_prompt_cache(fast, policy) for _ in range(2))
    start = 0
    for length in STEPS:
        ids = _ids(batch, start, length)
        x = defined.embed(ids)
        _assert_alike(fast.embed(ids), x)
        for n, layer in enumerate(defined.layers):
            wanted = layer(x, reference[n])
            _assert_alike(fast.layers[n](x, layer_by_layer[n]), wanted)
            x = wanted
        _assert_alike(fast(ids, at_once), defined.logits(defined.norm(x)))
        start += length


def test_every_width_of_codes_that_the_loader_makes_is_compared() -> None:
    assert {_READERS[kind][1] for kind in PACKED} == {bits for _, bits in _READERS.values()}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_both_definitions_say_the_same(kernels: Kernels, kind: str, batch: int) -> None:
    types, plain = KINDS[kind]
    _check(_weights(types), kernels, batch=batch, reference_weights=plain)


@pytest.mark.parametrize("batch", [1, 3])
def test_both_say_the_same_with_biases_and_with_one_table(kernels: Kernels, batch: int) -> None:
    q8 = every_matrix(TensorType.Q8_0)
    _check(_weights(q8, biases=True), kernels, batch=batch, reference_weights=0)
    _check(_weights(q8, tied=True), kernels, batch=batch, reference_weights=0)
