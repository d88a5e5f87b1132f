"""How layers turn their keys, as it is found by running them."""

import gc
import warnings
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import rope_utils

from kvcache import CacheConfig, Rotation, make_prompt_cache, mlx_lm
from kvcache.mlx_lm import ropes
from kvcache.turn import NO_ROPE
from tests.kvcache.mlx_lm import zoo
from tests.kvcache.tiny_llama import DIM, HKV, HQ, LAYERS, make_model

SMALL = CacheConfig(keys="f16", values="f16", max_tokens=80, hot=16, block=8)


def _with(rope: Any) -> Any:
    """A Llama whose layers turn by a rope."""
    model = make_model()
    for layer in model.layers:
        layer.self_attn.rope = rope
    return model


def _assert_turns(rotation: Rotation | None, rope: Any, atol: float = 1e-4) -> None:
    """Turning a rotated query back by n is the rope of n positions before."""
    assert rotation is not None
    x = mx.random.normal((1, 2, 5, DIM), key=mx.random.key(2))
    got = rotation(rope(x, offset=90), [-40] * 5)
    np.testing.assert_allclose(np.asarray(got), np.asarray(rope(x, offset=50)), atol=atol)


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        {"type": "linear", "factor": 4.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "mscale": 0.7},
        {"type": "proportional", "partial_rotary_factor": 0.5},
    ],
)
@pytest.mark.parametrize("traditional", [False, True])
def test_ropes_are_turned_as_they_turn(scaling: dict[str, Any] | None, traditional: bool) -> None:
    rope = rope_utils.initialize_rope(12, 1000.0, traditional, scaling, 512)
    _assert_turns(mlx_lm.rotation_of(_with(rope)), rope)


def test_a_scale_is_no_part_of_a_turn() -> None:
    factors = [1.0 + index / 5 for index in range(6)]
    rope = rope_utils.SuScaledRoPE(12, 1000.0, 512, 64, long_factor=factors)
    assert rope._scale > 1.1
    rotation = mlx_lm.rotation_of(_with(rope))
    _assert_turns(rotation, rope)
    assert rotation is not None
    x = mx.ones((1, 1, 1, DIM))
    assert mx.linalg.norm(rotation(x, [77])).item() == pytest.approx(DIM**0.5, rel=1e-5)


class _OnLast(nn.Module):  # type: ignore[misc]  # mlx tells no types
    """Turns the last 8 dimensions alone."""

    def __init__(self, traditional: bool) -> None:
        super().__init__()
        self.rope = nn.RoPE(8, traditional=traditional, base=100.0)

    def __call__(self, x: mx.array, offset: int = 0) -> mx.array:
        turned = self.rope(x[..., -8:], offset=offset)
        return mx.concatenate([x[..., :-8], turned], axis=-1)


def test_a_rope_on_the_last_dimensions_is_turned_where_pairs_lie_side_by_side() -> None:
    rope = _OnLast(traditional=True)
    _assert_turns(mlx_lm.rotation_of(_with(rope)), rope)


@pytest.mark.parametrize(
    "rope",
    [
        _OnLast(traditional=False),
        rope_utils.DynamicNTKScalingRoPE(DIM, 64, False, 100.0, 2.0),
        # From a length on that is beyond what the model says of itself.
        rope_utils.DynamicNTKScalingRoPE(DIM, 2**17, False, 100.0, 2.0),
    ],
)
def test_what_is_no_turn_means_true_distances_and_is_said_once(rope: Any) -> None:
    model = _with(rope)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        caches = [make_prompt_cache(model, SMALL) for _ in range(2)]
    assert not any(layer.stats().sinks_turned for cache in caches for layer in cache)
    distance = [str(each.message) for each in said if "distance" in str(each.message)]
    (said_once,) = distance
    assert said_once.startswith("llama: how 3 of 3 layers turn keys is not known;")


def test_each_layer_is_looked_at_alone() -> None:
    model = make_model()
    used = [nn.RoPE(DIM, base=100.0), nn.RoPE(DIM, base=50.0), lambda x, offset=0: x]
    for layer, rope in zip(model.layers, used, strict=True):
        layer.self_attn.rope = rope
    first, second, third = mlx_lm.rotations_of(model)
    _assert_turns(first, used[0])
    _assert_turns(second, used[1])
    assert third is NO_ROPE
    assert mlx_lm.rotation_of(model) is None


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
@pytest.mark.parametrize("bits", [4, None])
def test_rounded_keys_tell_it_too(dtype: mx.Dtype, bits: int | None) -> None:
    model = make_model()
    model.set_dtype(dtype)
    if bits:
        nn.quantize(model, 32, bits, class_predicate=lambda name, _: "k_proj" in name)
    _assert_turns(mlx_lm.rotation_of(model), nn.RoPE(DIM), atol=1e-3)


def test_no_weights_are_read_but_norms() -> None:
    """All others, of a model of any size, could be any numbers, and are."""
    model = make_model()
    want = mlx_lm.rotations_of(model)
    weights: Any = tree_flatten(model.parameters())
    spoiled = [(name, x * mx.nan) for name, x in weights if "input_layernorm" not in name]
    other = make_model()
    other.load_weights(spoiled, strict=False)
    got = mlx_lm.rotations_of(other)
    for ours, theirs in zip(got, want, strict=True):
        assert ours is not None
        assert theirs is not None
        np.testing.assert_array_equal(ours.periods, theirs.periods)
    assert len(spoiled) == len(weights) - LAYERS


class _Placed(nn.Module):  # type: ignore[misc]  # mlx tells no types
    """Attention to keys that are made of where they are."""

    def __init__(self) -> None:
        super().__init__()
        self.k_proj = nn.Linear(HQ * DIM, HKV * DIM)

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        keys = self.k_proj(x + 0.1 * cache.offset).reshape(*x.shape[:2], HKV, DIM).swapaxes(1, 2)
        cache.update_and_fetch(keys, keys)
        return x


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("bits", [8, None])
def test_a_position_is_seen_through_a_projection(bits: int | None) -> None:
    model = make_model()
    for layer in model.layers:
        layer.self_attn = _Placed()
    if bits:
        nn.quantize(model, 32, bits, class_predicate=lambda name, _: "k_proj" in name)
    assert mlx_lm.rotations_of(model) == [None] * LAYERS


def test_the_model_stays_as_it_is() -> None:
    model = make_model()
    states: Any = mx.random.state
    state = states[0].tolist()
    before = [(layer, type(layer)) for layer in model.layers]
    mlx_lm.rotations_of(model)
    assert states[0].tolist() == state
    pairs = zip(model.layers, before, strict=True)
    assert all(layer is same and type(layer) is kind for layer, (same, kind) in pairs)


def test_what_was_found_is_forgotten_with_the_model() -> None:
    model = make_model()
    first = mlx_lm.rotations_of(model)
    assert mlx_lm.rotations_of(model)[0] is first[0]
    place = id(model)
    del model
    gc.collect()
    assert place not in ropes._known


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ["gpt2", "jamba"])
def test_no_turn_is_no_distance_unless_tokens_have_places(name: str) -> None:
    rotations = mlx_lm.rotations_of(zoo.make(name))
    assert set(rotations) == ({None} if name == "gpt2" else {NO_ROPE})
