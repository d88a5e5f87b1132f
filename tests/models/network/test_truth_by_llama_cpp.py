"""Tiny files of every architecture against what llama.cpp says of them (`make truth`).

In plain MLX from unencoded weights, and by the CPU kernels from the same weights as Q8_0.
"""

import json
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from kvcache import Backend, CacheConfig, HotDtype, make_prompt_cache
from models.gguf.tensor_types import TensorType
from models.loader import load
from models.network.llama import Model
from tests.architectures import fingerprint
from tests.tiny_files import PROMPTS, SEED, TINY, WINDOW, prompt, write_tiny

TRUTH: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "data" / "architectures_truth.json").read_text(encoding="utf-8")
)["files"]
ARCHITECTURES = (
    "llama",
    "mistral3",
    "qwen2",
    "qwen3",
    "gemma3",
    "phi3",
    "smollm3",
    "granite",
    "olmo2",
)
KINDS = {Backend.REFERENCE: TensorType.F32, Backend.CPU: TensorType.Q8_0}
TOLERANCE = {Backend.REFERENCE: 0.01, Backend.CPU: 0.02}
# Two tokens this near each other may change places.
MARGIN = 0.02
PIECE = 29


def _supported() -> list[str]:
    where = "models.network.architectures"
    if find_spec(where) is None:
        return ["llama", "llama-tied-biases", "llama-3", "llama-linear"]
    supported = import_module(where).ARCHITECTURES
    return [name for name, shape in TINY.items() if shape.architecture in supported]


@pytest.fixture(scope="module", params=KINDS, ids=lambda backend: backend.value)
def backend(request: pytest.FixtureRequest) -> Backend:
    chosen: Backend = request.param
    return chosen


@pytest.fixture(scope="module", params=_supported())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(name: str, backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("tiny") / f"{name}.gguf"
    loaded = load(write_tiny(path, name, KINDS[backend]), backend=backend).model
    loaded.set_context(WINDOW)
    return loaded


def _empty(model: Model, backend: Backend) -> Callable[[Sequence[int]], np.ndarray]:
    """Asks for the logits [L, vocabulary] of the next tokens; all before them are unencoded."""
    config = CacheConfig(max_tokens=WINDOW, hot=WINDOW, hot_dtype=HotDtype.F32, backend=backend)
    cache = make_prompt_cache(model, config)
    return lambda ids: np.asarray(model(mx.array([list(ids)]), cache))[0]


def _furthest(truth: dict[str, Any], logits: np.ndarray) -> float:
    """How far log-probabilities are from the truth's, where logits [L, vocabulary] end."""
    worst = 0.0
    for best in truth["next_token_top20"]:
        row = logits[best["position"] - truth["prompt_tokens"]].astype(np.float64)
        logprobs = row - row.max() - np.log(np.exp(row - row.max()).sum())
        worst = max(worst, float(np.abs(logprobs[best["ids"]] - best["logprobs"]).max()))
    return worst


def test_every_architecture_has_its_truth() -> None:
    assert {TINY[name].architecture for name in TRUTH} == set(ARCHITECTURES)


@pytest.mark.parametrize("name", TINY)
def test_the_truth_is_of_these_files(name: str) -> None:
    assert TRUTH[name]["fingerprint"] == fingerprint(TINY[name], SEED)
    assert [truth["prompt_tokens"] for truth in TRUTH[name]["prompts"]] == list(PROMPTS)


@pytest.mark.parametrize("index", range(len(PROMPTS)), ids=PROMPTS)
def test_a_prompt_in_one_piece(name: str, model: Model, backend: Backend, index: int) -> None:
    truth = TRUTH[name]["prompts"][index]
    ids = prompt(PROMPTS[index])
    assert _furthest(truth, _empty(model, backend)(ids)) < TOLERANCE[backend]


@pytest.mark.parametrize("index", range(len(PROMPTS)), ids=PROMPTS)
def test_a_prompt_in_pieces_and_its_answer(
    name: str, model: Model, backend: Backend, index: int
) -> None:
    """The end of the prompt and the answer token by token, as they are generated."""
    truth = TRUTH[name]["prompts"][index]
    ids = prompt(PROMPTS[index])
    singles = ids[-3:] + truth["greedy_ids"][:-1]
    ask = _empty(model, backend)
    for start in range(0, len(ids) - 3, PIECE):
        ask(ids[start : min(start + PIECE, len(ids) - 3)])
    rows = np.concatenate([ask([token]) for token in singles])
    assert _furthest(truth, rows[:3]) < TOLERANCE[backend]
    margins = np.array(truth["greedy_top1_minus_top2_logit"])
    decided = margins >= MARGIN
    assert decided.sum() > len(margins) / 2
    got = rows[2:].argmax(axis=-1)
    assert got[decided].tolist() == np.array(truth["greedy_ids"])[decided].tolist()


def test_without_a_cache(name: str, model: Model, backend: Backend) -> None:
    truth = TRUTH[name]["prompts"][1]
    logits = np.asarray(model(mx.array([prompt(PROMPTS[1])])))[0]
    assert _furthest(truth, logits) < TOLERANCE[backend]
