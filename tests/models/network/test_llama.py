import re
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from kvcache import CacheConfig, EmberError, HotDtype, make_prompt_cache
from models.errors import GGUFError
from models.network.config import NetworkConfig
from models.network.llama import Model
from models.network.switches import Switches
from models.network.weights import Weights
from tests.models.gguf.blocks import of_floats
from tests.models.network import numpy_llama

VOCABULARY = 53
IDS = [3, 17, 52, 0, 29, 29, 5, 41, 11, 7, 2]
GQA = NetworkConfig(
    layers=3,
    hidden=48,
    ffn=67,
    heads=6,
    kv_heads=2,
    head_dim=8,
    context=128,
    norm_eps=1e-5,
    rope_dims=8,
    rope_base=10000.0,
)
VARIANTS = {
    "gqa": GQA,
    "mqa": replace(GQA, kv_heads=1),
    "mha": replace(GQA, kv_heads=6),
    "wide-heads": replace(GQA, head_dim=16, rope_dims=16),
    "partial-rope": replace(GQA, rope_dims=4),
    "rope-base": replace(GQA, rope_base=500000.0),
    "rope-linear": replace(GQA, rope_factor=4.0),
}


def _tensors(
    config: NetworkConfig, *, tied: bool = False, rope_freqs: bool = False, biases: bool = False
) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(11)
    query, held = config.heads * config.head_dim, config.kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCABULARY, config.hidden)}
    for layer in range(config.layers):
        shapes |= {
            f"blk.{layer}.attn_q.weight": (query, config.hidden),
            f"blk.{layer}.attn_k.weight": (held, config.hidden),
            f"blk.{layer}.attn_v.weight": (held, config.hidden),
            f"blk.{layer}.attn_output.weight": (config.hidden, query),
            f"blk.{layer}.ffn_gate.weight": (config.ffn, config.hidden),
            f"blk.{layer}.ffn_up.weight": (config.ffn, config.hidden),
            f"blk.{layer}.ffn_down.weight": (config.hidden, config.ffn),
        }
        if biases:
            shapes |= {f"blk.{layer}.attn_q.bias": (query,), f"blk.{layer}.attn_v.bias": (held,)}
    if not tied:
        shapes["output.weight"] = (VOCABULARY, config.hidden)
    tensors = {name: rng.normal(size=shape) * 0.3 for name, shape in shapes.items()}
    norms = [
        f"blk.{i}.{part}_norm.weight" for i in range(config.layers) for part in ("attn", "ffn")
    ]
    for name in [*norms, "output_norm.weight"]:
        tensors[name] = rng.uniform(0.5, 1.5, size=config.hidden)
    if rope_freqs:
        tensors["rope_freqs.weight"] = rng.uniform(1, 8, size=config.rope_dims // 2)
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def _weights(tensors: dict[str, np.ndarray], dtype: mx.Dtype) -> Weights:
    return Weights({name: of_floats(name, tensor) for name, tensor in tensors.items()}, dtype)


def _model(config: NetworkConfig, tensors: dict[str, np.ndarray]) -> Model:
    return Model(config, _weights(tensors, mx.float32))


def _oracle(config: NetworkConfig, tensors: dict[str, np.ndarray]) -> np.ndarray:
    doubles = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    return numpy_llama.forward(config, doubles.get, IDS)


def _check(config: NetworkConfig, tensors: dict[str, np.ndarray]) -> None:
    model, want = _model(config, tensors), _oracle(config, tensors)
    whole = np.asarray(model(mx.array([IDS])))[0]
    np.testing.assert_allclose(whole, want, atol=2e-4)
    cache = make_prompt_cache(model, CacheConfig(hot_dtype=HotDtype.F32))
    spans = (slice(0, 4), slice(4, 5), slice(5, 11))
    pieces = [model(mx.array([IDS[span]]), cache) for span in spans]
    np.testing.assert_allclose(np.asarray(mx.concatenate(pieces, axis=1))[0], want, atol=2e-4)


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_logits_match_the_papers(config: NetworkConfig) -> None:
    _check(config, _tensors(config))


@pytest.mark.parametrize("option", ["tied", "rope_freqs", "biases"])
def test_optional_tensors_are_used(option: str) -> None:
    tensors = _tensors(GQA, **{option: True})
    _check(GQA, tensors)
    plain = _oracle(GQA, _tensors(GQA))
    assert np.abs(plain - _oracle(GQA, tensors)).max() > 0.01


def test_half_precision_activations_stay_close() -> None:
    tensors = _tensors(GQA)
    logits = Model(GQA, _weights(tensors, mx.float16))(mx.array([IDS]))
    assert logits.dtype == mx.float16
    want = _oracle(GQA, tensors)
    got = np.asarray(logits.astype(mx.float32))[0]
    assert np.abs(got - want).max() < 0.03 * want.std()


def test_residuals_beyond_float16_are_kept_inside() -> None:
    """As Gemma's are: what a norm after each half lets through is greater than 65504 together."""
    config = replace(GQA, switches=Switches(post_norms=True))
    tensors = _tensors(config)
    for layer in range(config.layers):
        for name in ("post_attention_norm", "post_ffw_norm"):
            tensors[f"blk.{layer}.{name}.weight"] = np.full(config.hidden, 1.5e4, np.float32)
    wide = np.asarray(Model(config, _weights(tensors, mx.float32)).hidden(mx.array([IDS])))
    narrow = Model(config, _weights(tensors, mx.float16)).hidden(mx.array([IDS]))
    found = np.asarray(narrow.astype(mx.float32))
    assert np.isfinite(found).all()
    assert np.corrcoef(found.ravel(), wide.ravel())[0, 1] > 0.98


def test_logits_may_have_a_cap() -> None:
    tensors = _tensors(GQA)
    without = np.asarray(_model(GQA, tensors)(mx.array([IDS])))
    config = replace(GQA, switches=Switches(logit_cap=3.0))
    capped = np.asarray(_model(config, tensors)(mx.array([IDS])))
    np.testing.assert_allclose(capped, 3 * np.tanh(without / 3), atol=1e-4)
    assert np.abs(without).max() > 3


def test_a_batch_row_does_not_see_the_others() -> None:
    model = _model(GQA, _tensors(GQA))
    other = IDS[::-1]
    both = model(mx.array([IDS, other]))
    np.testing.assert_allclose(
        np.asarray(both[1]), np.asarray(model(mx.array([other])))[0], atol=1e-5
    )


@pytest.mark.parametrize("ids", [[3, VOCABULARY], [-1], [3, 2**31 - 1]])
def test_ids_outside_the_vocabulary_are_refused(ids: list[int]) -> None:
    model = _model(GQA, _tensors(GQA))
    with pytest.raises(EmberError, match=rf"token ids {min(ids)} to {max(ids)}, expected 0 to 52"):
        model(mx.array([ids]))


@pytest.mark.parametrize("shape", [(1, 0), (0, 3)])
def test_no_ids_are_refused(shape: tuple[int, int]) -> None:
    model = _model(GQA, _tensors(GQA))
    with pytest.raises(EmberError, match=rf"shape {re.escape(str(shape))}, expected at least one"):
        model(mx.zeros(shape, mx.int32))


@pytest.mark.parametrize("id_", [VOCABULARY, 2**31 - 1])
def test_one_id_on_a_gpu_stays_inside_the_table_without_being_waited_for(
    monkeypatch: pytest.MonkeyPatch, id_: int
) -> None:
    model = _model(GQA, _tensors(GQA))
    monkeypatch.setattr("models.network.llama.on_gpu", lambda: True)
    last = model.embed(mx.array([[VOCABULARY - 1]]))
    assert mx.array_equal(model.embed(mx.array([[id_]])), last)


def test_rope_factors_that_divide_by_nothing_are_refused() -> None:
    tensors = _tensors(GQA, rope_freqs=True)
    tensors["rope_freqs.weight"][2] = 0
    with pytest.raises(GGUFError, match=r"'rope_freqs.weight' holds 0.0, expected positive"):
        _model(GQA, tensors)


def test_the_context_chooses_among_factors_of_rope() -> None:
    config = replace(GQA, original_context=64, context=256)
    tensors = _tensors(config)
    for length, last in (("short", 3), ("long", 30)):
        name = f"rope_factors_{length}.weight"
        tensors[name] = np.linspace(1, last, config.rope_dims // 2, dtype=np.float32)
    model, unscaled = _model(config, tensors), _model(GQA, _tensors(GQA))
    assert _slowest(model) == pytest.approx(30 * _slowest(unscaled))  # in all of its context
    model.set_context(64)
    assert _slowest(model) == pytest.approx(3 * _slowest(unscaled))
    model.set_context(65)
    assert _slowest(model) == pytest.approx(30 * _slowest(unscaled))


def _slowest(model: Model) -> float:
    """Period of the last pair, which is that of all layers."""
    (last,) = {float(rotation.periods[-1]) for rotation in model.rotations if rotation}
    return last


def test_mlx_lm_can_generate_with_it() -> None:
    from mlx_lm.generate import generate_step

    model = _model(GQA, _tensors(GQA))
    stream = generate_step(mx.array(IDS), model, max_tokens=5)
    tokens = [int(token) for token, _ in stream]
    ids = list(IDS)
    for _ in range(5):
        ids.append(int(mx.argmax(model(mx.array([ids]))[0, -1]).item()))
    assert tokens == ids[len(IDS) :]
