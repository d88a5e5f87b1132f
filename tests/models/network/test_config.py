from typing import Any

import numpy as np
import pytest

from models.errors import GGUFError
from models.gguf.metadata import Metadata
from models.network.config import NetworkConfig

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
        ("rope__dimension_count", 18, "18 turning dimensions of 16"),
        ("rope__dimension_count", 5, "5 turning dimensions"),
    ],
)
def test_numbers_out_of_bounds_end_in_one_line(key: str, value: float, named: str) -> None:
    with pytest.raises(GGUFError) as caught:
        read(**{key: value})
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


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
