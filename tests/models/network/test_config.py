from typing import Any

import numpy as np
import pytest

from models.errors import GGUFError
from models.gguf.metadata import Metadata
from models.network.config import NetworkConfig
from models.network.rope import Yarn

PLAIN: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 3,
    "llama.embedding_length": 96,
    "llama.feed_forward_length": 67,
    "llama.attention.head_count": 6,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.context_length": 128,
}


def read(**changes: Any) -> NetworkConfig:
    keys = {f"llama.{name.replace('__', '.')}": value for name, value in changes.items()}
    return NetworkConfig.from_metadata(Metadata(PLAIN | keys))


def test_defaults_are_the_specifications() -> None:
    config = read()
    assert (config.head_dim, config.rope_dims, config.rope_base, config.rope_factor) == (
        *(16, 16),
        *(10000.0, 1.0),
    )
    assert read(rope__scaling__factor=4.0).shape.context == 512


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("context_length", 2**31 - 1, "context=2147483647, expected 1 to 16777216"),
        ("context_length", 0, "context=0"),
        ("block_count", 2**31 - 1, "layers="),
        ("embedding_length", 2**31 - 1, "hidden="),
        ("feed_forward_length", 2**31 - 1, "ffn="),
        ("attention__head_count", 2**31 - 1, "heads="),
        ("attention__head_count_kv", 0, "kv_heads=0"),
        ("attention__head_count_kv", 4, "6 heads over 4 KV heads"),
        ("attention__key_length", 2**40, "head_dim="),
        ("attention__layer_norm_rms_epsilon", 0.0, "norm_eps=0.0"),
        ("attention__layer_norm_rms_epsilon", 1e30, "norm_eps=1e+30, expected 1e-15 to 1"),
        ("rope__scaling__factor", 1e30, "rope_factor=1e+30"),
        ("rope__scaling__factor", 1e-30, "rope_factor=1e-30"),
        ("rope__scaling__factor", -2.0, "rope_factor=-2.0"),
        ("rope__scaling__factor", 2.0**18, "a context of 128 tokens, stretched 262144 times"),
        ("rope__scaling__factor", 1e-3, "stretched 0.001 times, expected 1 to 16777216 tokens"),
        ("rope__freq_base", 1e38, "rope_base=1e+38"),
        ("rope__freq_base", 1e-30, "rope_base=1e-30, expected 1 to 1e+18"),
        ("rope__scaling__attn_factor", 0.0, "rope_magnitude=0.0, expected 0.001 to 1000"),
        ("rope__dimension_count", 18, "18 turning dimensions of 16"),
        ("rope__dimension_count", 5, "5 turning dimensions"),
    ],
)
def test_numbers_out_of_bounds_end_in_one_line(key: str, value: float, named: str) -> None:
    with pytest.raises(GGUFError) as caught:
        read(**{key: value})
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


YARN = {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0}


def test_yarn_stretches_what_the_network_was_trained_for() -> None:
    assert read(**YARN).shape.context == 512
    config = read(**YARN, rope__scaling__original_context_length=32)
    assert config.shape.context == 128  # as the file says, which is the stretched one
    assert config.yarn == Yarn(original=32)
    assert config.rope_magnitude == pytest.approx(1 + 0.1 * np.log(4))
    assert config.named() == (
        "rope stretched 4 times by YaRN from 32 tokens",
        "queries and keys multiplied by 1.139 where they turn",
    )
    # Where it begins and ends is heeded where llama.cpp does.
    assert read(**YARN, rope__scaling__yarn_beta_fast=8.0).yarn == Yarn(original=128)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"rope__scaling__original_context_length": 0}, "YaRN over 0 tokens"),
        ({"rope__scaling__original_context_length": 2**40}, "stretched 4 times, expected 1 to"),
        ({"rope__freq_base": 1.0}, "YaRN for a rope of base 1"),
        ({"rope__scaling__type": "ntk"}, "'ntk' is not supported, expected linear, yarn, none"),
    ],
)
def test_impossible_scalings_end_in_one_line(more: dict[str, Any], told: str) -> None:
    with pytest.raises(GGUFError, match=told):
        read(**YARN | more)


@pytest.mark.parametrize(
    "turns", [(1.0, 1.0), (1.0, 2.0), (4.0, 0.0), (4.0, -1.0), (1e308, 1.0), (4.0, 5e-324)]
)
def test_yarn_begins_before_it_ends(turns: tuple[float, float]) -> None:
    with pytest.raises(GGUFError, match="fewer turns at the end than at the start"):
        Yarn(original=32, fast=turns[0], slow=turns[1])


@pytest.mark.parametrize(
    ("key", "value"),
    [("context_length", 2**24), ("rope__freq_base", 1e12), ("rope__scaling__factor", 32.0)],
)
def test_what_long_models_have_is_taken(key: str, value: float) -> None:
    read(**{key: value})


@pytest.mark.parametrize(
    "key", ["feed_forward_length", "attention__head_count", "attention__head_count_kv"]
)
def test_a_number_may_be_given_for_each_layer(key: str) -> None:
    value = PLAIN[f"llama.{key.replace('__', '.')}"]
    assert read(**{key: np.array([value] * 3, np.int32)}) == read()
    for numbers, told in (
        ([value] * 2, "has 2 entries, expected one for each of 3 layers"),
        ([], "has 0 entries"),
        ([value, value, 3], "differs between layers"),
        ([1.0] * 3, "expected an array of integers"),
    ):
        with pytest.raises(GGUFError, match=told):
            read(**{key: np.array(numbers, None if 1.0 in numbers else np.int32)})
