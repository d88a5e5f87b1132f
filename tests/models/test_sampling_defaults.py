"""What makers recommend, by files of made-up metadata."""

from typing import Any

import numpy as np
import pytest

from models.gguf.metadata import Metadata
from models.sampling_defaults import GENERIC, Recommended, SamplingDefaults


def _of(architecture: str = "llama", name: str = "", **told: Any) -> SamplingDefaults:
    keys = {f"general.sampling.{key}": value for key, value in told.items()}
    return SamplingDefaults.from_metadata(
        Metadata({"general.architecture": architecture, "general.name": name, **keys})
    )


@pytest.mark.parametrize(
    ("architecture", "name", "expected"),
    [
        ("qwen3", "Qwen3 8B", (0.6, 0.95, 20)),
        ("qwen2", "Qwen2.5 7B Instruct", (0.7, 0.8, 20)),
        ("qwen2", "DeepSeek R1 Distill Qwen 1.5B", (0.6, 0.95, 0)),
        ("llama", "DeepSeek-R1-Distill-Llama-8B", (0.6, 0.95, 0)),
        ("gemma3", "anything", (1.0, 0.95, 64)),
        ("smollm3", "SmolLM3 3B", (0.6, 0.95, 0)),
        ("llama", "Smollm2 135M 8k Lc100K Mix1 Ep2", (0.0, 1.0, 0)),
        ("llama", "SmolLM2 1.7B Instruct", (0.2, 0.9, 0)),
        ("llama", "Llama 3.2 1B Instruct", (0.6, 0.9, 0)),
        ("llama", "Meta-Llama-3-8B-Instruct", (0.6, 0.9, 0)),
        ("llama", "LLaMA v2", (0.6, 0.9, 0)),
        ("mistral3", "Ministral 3 3B Instruct 2512", (0.05, 1.0, 0)),
        ("llama", "Mistral Small 24B Instruct 2501", (0.15, 1.0, 0)),
        ("phi3", "Phi 4 Mini Reasoning", (0.8, 0.95, 50)),
    ],
)
def test_a_family_is_told_by_architecture_and_name(
    architecture: str, name: str, expected: tuple[float, float, int]
) -> None:
    found = _of(architecture, name).usual
    assert (found.temp, found.top_p, found.top_k) == expected
    assert found.source.startswith(("https://", "ember's choice"))


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("llama", "open_llama_3b"),
        ("llama", "LLaMA-30B"),
        ("qwen3", ""),
        ("phi3", "Phi 4 Mini Instruct"),
        ("granite", "Llama 3"),
        ("\x00", "\x1b[2J" * 1000),
    ],
)
def test_a_name_alone_or_a_like_one_is_no_family(architecture: str, name: str) -> None:
    if architecture == "qwen3":
        assert _of(architecture, name).usual.top_k == 20
    else:
        assert _of(architecture, name).usual == GENERIC


def test_thinking_models_are_recommended_otherwise_where_they_do_not_think() -> None:
    found = _of("qwen3", "Qwen3 8B")

    def top_p(think: bool | None, *, thinks: bool = True, has_switch: bool = True) -> float:
        return found.recommended(think, thinks=thinks, has_switch=has_switch).top_p

    assert (top_p(None), top_p(True), top_p(False)) == (0.95, 0.95, 0.8)
    assert top_p(False, has_switch=False) == 0.95
    assert top_p(None, thinks=False) == 0.8


def test_what_the_file_says_goes_first_and_the_rest_is_its_family_s_or_off() -> None:
    found = _of("llama", "unheard of", temp=0.25, top_k=40)
    assert found.usual == found.plain == Recommended(temp=0.25, top_k=40, source="the model's file")
    found = _of("qwen3", "Qwen3 8B", temp=1, penalty_repeat=1.2, min_p=0.0, top_p=1.0)
    assert found.usual.values == {
        "temp": 1.0,
        "top_p": 1.0,
        "top_k": 20,
        "min_p": 0.0,
        "repeat_penalty": 1.2,
    }
    assert found.notes == ()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temp", float("nan")),
        ("temp", float("inf")),
        ("temp", 1e30),
        ("temp", -1.0),
        ("temp", "hot"),
        ("temp", True),
        ("temp", np.array([0.7], np.float32)),
        ("temp", ["0.7"]),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_k", -1),
        ("top_k", 2**63),
        ("top_k", 20.0),
        ("min_p", -0.1),
        ("penalty_repeat", 0.0),
        ("penalty_repeat", -1e30),
    ],
)
def test_what_cannot_be_a_setting_is_left_out_with_a_note(key: str, value: object) -> None:
    found = _of("llama", "unheard of", **{key: value})
    (note,) = found.notes
    assert note.startswith(f"general.sampling.{key} is ")
    assert note.endswith("; it is not used")
    assert found.usual == GENERIC
    # The others are used nevertheless.
    others: dict[str, Any] = {"temp": 0.5} if key != "temp" else {"top_k": 5}
    found = _of("llama", "unheard of", **{key: value}, **others)
    assert found.usual == Recommended(**others, source="the model's file")


def test_names_that_are_no_text_are_none() -> None:
    assert SamplingDefaults.from_metadata(Metadata({"general.name": 7})) == SamplingDefaults()
