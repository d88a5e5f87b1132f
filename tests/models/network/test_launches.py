"""Launches of a decoded token on a GPU, counted in the graph that MLX makes of it.

What MLX's GPU runs as one kernel and its CPU takes apart (norms, rope, kernels of
ours) is stood in for by one primitive, so that the graph is the GPU's. Nothing of it
is computed.
"""

import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from math import prod

import mlx.core as mx
import numpy as np
import pytest

from kvcache import Backend, CacheConfig, TwoTierKVCache
from kvcache.gpu import TierDecoder, TierEncoder
from kvcache.gpu.kernel import Call
from kvcache.prompt_cache import from_plan
from kvcache.sight import Sight
from kvcache.snapshot import Snapshot
from kvcache.tiers.gpu import GpuTiers
from kvcache.tiers.plan import resolve
from models.gguf.header import TensorInfo
from models.gguf.repack import Quantized, Unquantized, repack
from models.gguf.tensor_types import TensorType
from models.network import shapes
from models.network.config import LlamaConfig
from models.network.llama import Model
from models.network.weights import Weights
from tests.gguf_factory import TypeChoice, every_matrix, random_tensor

VOCABULARY = 67
CONFIG = LlamaConfig(
    layers=2,
    hidden=192,
    ffn=320,
    heads=6,
    kv_heads=2,
    head_dim=64,
    context=5000,
    norm_eps=1e-5,
    rope_dims=64,
    rope_base=10000.0,
)
CACHE = CacheConfig(max_tokens=400, hot=53, block=32, backend=Backend.GPU, check_finite=False)
# Tokens in the cache: some hot ones alone; cold blocks too; a window that has moved. The
# next one completes no block: encoding is counted where it is done.
HELD = {"hot": 29, "cold": 151, "steady": 1229}
MOST_BESIDE_ATTENTION = 11
MOST_OF_ATTENTION = {"hot": 2, "cold": 3, "steady": 3}
# Primitives that launch nothing: the same memory in another shape or order. Of one token
# nothing needs a copy for it, since axes of length 1 lie in any order.
VIEWS = {
    *("Broadcast", "ExpandDims", "Flatten", "Reshape", "Slice", "Split", "Squeeze"),
    *("Transpose", "Unflatten"),
}
STAND_IN = "Depends"


def launched(
    inputs: Sequence[mx.array], shapes: Sequence[tuple[int, ...]], dtypes: Sequence[mx.Dtype]
) -> list[mx.array]:
    """Outputs that MLX's graph makes of the inputs by one primitive."""
    outputs = [mx.zeros(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    mx.eval(outputs)
    made: list[mx.array] = mx.depends(outputs, list(inputs))
    return made


def launch(call: Call) -> list[mx.array]:
    """A launcher that computes nothing."""
    return launched(call.inputs, call.shapes, call.dtypes)


def rms_norm(x: mx.array, weight: mx.array, _eps: float) -> mx.array:
    """As `mx.fast.rms_norm`."""
    return launched([x, weight], [x.shape], [x.dtype])[0]


def rope(x: mx.array, _dims: int, *, offset: int | mx.array, **_: object) -> mx.array:
    """As `mx.fast.rope` of whole heads."""
    offsets = [offset] if isinstance(offset, mx.array) else []
    return launched([x, *offsets], [x.shape], [x.dtype])[0]


def one_launch(
    _tiers: GpuTiers, q: mx.array, held: Snapshot, _sight: Sight, _scale: float
) -> mx.array:
    """As `GpuTiers.attend_snapshot`, of one launch."""
    tokens = [array for tier in (held.new, held.hot, held.pinned) for array in tier or ()]
    return launched([q, *tokens], [q.shape], [q.dtype])[0]


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvcache.config.on_gpu", lambda: True)
    monkeypatch.setattr("models.network.llama.on_gpu", lambda: True)
    monkeypatch.setattr(mx.fast, "rms_norm", rms_norm)
    monkeypatch.setattr(mx.fast, "rope", rope)


def _model(config: LlamaConfig, types: TypeChoice) -> Model:
    rng, tensors = np.random.default_rng(7), dict[str, Quantized | Unquantized]()
    for expected in shapes._network(config, VOCABULARY):
        name, shape = expected.name, expected.shape
        if expected.optional:
            continue
        kind = types(name) if len(shape) == 2 else TensorType.F32
        rows = random_tensor(shape, kind, rng).reshape(prod(shape[:-1]), -1)
        info = TensorInfo(name=name, shape=shape, type=kind, offset=0, nbytes=rows.nbytes)
        tensors[name] = repack(info, rows)
    model = Model(config, Weights(tensors, mx.float16))
    mx.eval(model.parameters())  # norms are cast once
    return model


def _caches(model: Model, held: int) -> list[TwoTierKVCache]:
    caches = from_plan(resolve(CACHE, model.shape), model.rotation)
    size = 1, model.shape.kv_heads, held, model.shape.head_dim
    for cache in caches:
        cache._tiers = GpuTiers(
            cache.plan, decoder=TierDecoder(launch=launch), encoder=TierEncoder(launch=launch)
        )
        cache.append(mx.zeros(size, mx.float16), mx.zeros(size, mx.float16))
        assert cache.ledger.appended(1).end == cache.ledger.end
        mx.eval(cache.pending())
    return caches


def _launches(layers: int, types: TypeChoice, held: int) -> Counter[str]:
    """Primitives of a token's graph that launch something, by name; written tokens among them."""
    model = _model(replace(CONFIG, layers=layers), types)
    caches = _caches(model, held)
    logits = model(mx.array([[3]]), caches)
    graph = io.StringIO()
    mx.export_to_dot(graph, logits, *(array for cache in caches for array in cache.pending()))
    names = re.findall(r'label ="(\w+)", shape=rectangle', graph.getvalue())
    return Counter(name for name in names if name not in VIEWS)


def launches_of_a_layer(types: TypeChoice, held: int) -> Counter[str]:
    """What one more layer adds."""
    return _launches(3, types, held) - _launches(2, types, held)


def mixed(name: str) -> TensorType:
    """Values in another format, as Q4_K_M has them in half of its layers."""
    return TensorType.Q8_0 if "attn_v" in name or "ffn_down" in name else TensorType.Q4_1


@pytest.mark.parametrize("state", HELD)
def test_a_token_takes_few_launches(state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    types = every_matrix(TensorType.Q4_1)
    whole = launches_of_a_layer(types, HELD[state]).total()
    monkeypatch.setattr(GpuTiers, "attend_snapshot", one_launch)
    rest = launches_of_a_layer(types, HELD[state]).total() - 1
    assert rest <= MOST_BESIDE_ATTENTION
    assert whole - rest <= MOST_OF_ATTENTION[state]


def test_what_the_launches_beside_attention_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GpuTiers, "attend_snapshot", one_launch)
    found = launches_of_a_layer(every_matrix(TensorType.Q4_1), HELD["steady"])
    norms_rope_and_attention, products = 2 + 1 + 1, 4
    assert found.pop(STAND_IN) == norms_rope_and_attention
    assert found.pop("QuantizedMatmul") == products
    assert found.pop("SliceUpdate") == 1  # the hot ring's keys and values
    assert found.pop("Add") == 2  # residuals
    ((swiglu, count),) = found.items()
    assert swiglu.startswith("CompiledSigmoid")
    assert count == 1


def test_a_mixed_file_joins_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values are a product and a write of their own."""
    monkeypatch.setattr(GpuTiers, "attend_snapshot", one_launch)
    pure, mix = (
        launches_of_a_layer(types, HELD["cold"]) for types in (every_matrix(TensorType.Q4_1), mixed)
    )
    assert mix - pure == {"QuantizedMatmul": 1, "SliceUpdate": 1}
    assert not pure - mix
