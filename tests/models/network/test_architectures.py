import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.errors import GGUFError
from models.gguf.metadata import Metadata
from models.network.architectures import _KIN, ARCHITECTURES, architecture_of
from models.network.config import NetworkConfig
from models.network.switches import Activation, NormOf, Switches

LAYERS = 7
PAGE = Path(__file__).parents[3] / "docs" / "architectures.md"


def switches(name: str, **more: Any) -> Switches:
    keys = {
        "block_count": LAYERS,
        "embedding_length": 96,
        "attention.head_count": 6,
        "context_length": 128,
        **{key.replace("__", "."): value for key, value in more.items()},
    }
    given = {f"{name}.{key}": value for key, value in keys.items()}
    found, architecture = architecture_of(Metadata({"general.architecture": name, **given}))
    return architecture.switches(found)


def test_what_differs_from_llama() -> None:
    assert switches("llama") == Switches()
    assert switches("qwen2") == Switches(half_split=True)
    assert switches("qwen3") == Switches(half_split=True, query_key_norm=NormOf.HEAD)
    assert switches("phi3", attention__sliding_window=32) == Switches(half_split=True, fused=True)
    assert switches("smollm3") == Switches(unturned=frozenset({3}))
    olmo2 = Switches(half_split=True, query_key_norm=NormOf.ROW, pre_norms=False, post_norms=True)
    assert switches("olmo2") == olmo2


def test_scales_are_what_the_file_says() -> None:
    found = switches(
        "granite",
        attention__scale=0.25,
        embedding_scale=12.0,
        residual_scale=0.22,
        logit_scale=8.0,
        rope__scaling__finetuned=False,
    )
    assert found.unturned == frozenset(range(LAYERS))
    scales = found.attention_scale, found.embedding_scale, found.residual_scale
    assert (*scales, found.logit_divisor) == (0.25, 12.0, 0.22, 8.0)
    original = {"rope__scaling__original_context_length": 31}
    mistral3 = switches("mistral3", attention__temperature_scale=0.1, **original)
    assert (mistral3.temperature_scale, mistral3.temperature_span) == (0.1, 31)
    assert switches("mistral3") == Switches()


@pytest.mark.parametrize(
    ("given", "windowed"),
    [
        ({}, {0, 1, 2, 3, 4, 6}),
        ({"attention__sliding_window_pattern": 3}, {0, 1, 3, 4, 6}),
        ({"attention__sliding_window_pattern": np.array([True, False] * 3 + [True])}, {0, 2, 4, 6}),
    ],
)
def test_which_layers_see_a_window(given: dict[str, Any], windowed: set[int]) -> None:
    found = switches("gemma3", attention__sliding_window=17, **given)
    assert found.windowed == windowed
    assert [found.window_of(layer) for layer in (0, 5)] == [17, 17 if 5 in windowed else None]
    assert found.window_rope_base == 10000
    assert found.activation is Activation.GELU_TANH
    assert found.embedding_scale == 96**0.5
    assert switches("gemma3").windowed == frozenset()


def test_what_ollama_leaves_out_of_gemma3() -> None:
    given = {
        "general.architecture": "gemma3",
        "gemma3.block_count": 34,
        "gemma3.context_length": 131072,
        "gemma3.embedding_length": 2560,
        "gemma3.feed_forward_length": 10240,
        "gemma3.attention.head_count": 8,
        "gemma3.attention.head_count_kv": 4,
        "gemma3.attention.sliding_window": 1024,
    }
    config = NetworkConfig.from_metadata(Metadata(given))
    assert (config.head_dim, config.rope_base, config.rope_factor) == (256, 1e6, 8)
    assert config.shape.context == 131072  # stretched already
    assert (config.switches.window_rope_base, config.norm_eps) == (10000, 1e-6)
    others = {"gemma3.rope.global.freq_base": 5e5, "gemma3.rope.local.freq_base": 2e4}
    config = NetworkConfig.from_metadata(Metadata(given | others | {"gemma3.block_count": 26}))
    assert (config.rope_base, config.switches.window_rope_base) == (5e5, 2e4)
    assert config.rope_factor == 1


@pytest.mark.parametrize(("layers", "cap"), [(7, 30), (26, None)])
def test_gemma3s_smallest_model_has_no_cap(layers: int, cap: float | None) -> None:
    given = {"final_logit_softcapping": 30.0, "attention__sliding_window": 17}
    assert switches("gemma3", block_count=layers, **given).logit_cap == cap


def test_window_layers_of_olmo3_have_the_base_of_all() -> None:
    bases = {"rope__freq_base": 500000.0, "rope__freq_base_swa": 20000.0}
    found = switches("olmo2", attention__sliding_window=17, **bases)
    assert found.windowed == {0, 1, 2, 4, 5, 6}
    assert found.window_rope_base == 500000


def test_a_pattern_of_other_layers_is_refused() -> None:
    pattern = np.array([True, False])
    with pytest.raises(GGUFError, match="has 2 entries of bool, expected a boolean for each of 7"):
        switches("gemma3", attention__sliding_window=17, attention__sliding_window_pattern=pattern)


@pytest.mark.parametrize(
    ("name", "kin"),
    [("qwen3moe", "qwen3"), ("gemma2", "gemma3"), ("phi2", "phi3"), ("llama4", "llama")],
)
def test_what_is_not_run_has_kin(name: str, kin: str) -> None:
    with pytest.raises(GGUFError) as caught:
        switches(name)
    text = str(caught.value)
    assert text.startswith(f"the architecture {name!r} is not supported (the nearest that is: ")
    assert f"{kin!r}" in text
    assert "\n" not in text
    assert all(f"{each} (" in text for each in ARCHITECTURES)


def test_kin_is_run_and_what_has_kin_is_not() -> None:
    assert set(_KIN.values()) == set(ARCHITECTURES) - {"smollm3"}
    assert not _KIN.keys() & ARCHITECTURES.keys()


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("attention__sliding_window", -1, "layers that see -1 tokens, expected 1 to 16777216"),
        ("attention__sliding_window", 2**40, "layers that see 1099511627776 tokens"),
        ("attention__sliding_window_pattern", -3, "pattern is -3, expected a number of layers"),
        ("final_logit_softcapping", 1e30, r"logit_cap=1e\+30"),
        ("rope__freq_base_swa", -1.0, r"window_rope_base=-1, expected 1 to 1e\+18"),
        ("rope__freq_base_swa", 0.0, "window_rope_base=0"),
    ],
)
def test_impossible_windows_end_in_one_line(key: str, value: float, told: str) -> None:
    with pytest.raises(GGUFError, match=told):
        switches("gemma3", **{"attention__sliding_window": 17, key: value})


def test_strangers_have_none() -> None:
    with pytest.raises(GGUFError, match="'mamba' is not supported; ember runs llama"):
        switches("mamba")


def test_every_architecture_but_llama_says_what_it_does() -> None:
    more = {"granite": {"logit_scale": 8.0}, "mistral3": {"attention__temperature_scale": 0.1}}
    for name in ARCHITECTURES:
        assert bool(switches(name, **more.get(name, {})).named()) is (name != "llama")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("embedding_scale", 0.0),
        ("residual_scale", -1.0),
        ("logit_divisor", 1e30),
        ("attention_scale", float("inf")),
        ("temperature_scale", -1.0),
        ("temperature_span", 0),
        ("windowed", frozenset({1})),
        ("logit_cap", -30.0),
    ],
)
def test_impossible_switches_are_refused(name: str, value: Any) -> None:
    with pytest.raises(GGUFError, match="expected"):
        Switches(**{name: value})


def test_the_page_has_a_row_for_each() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == list(ARCHITECTURES)
