"""The real SmolLM2 against llama.cpp, whose figures were taken from weights in float32."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from app.engine import Engine, Request
from app.events import Finished
from kvcache import Backend, CacheConfig, HotDtype
from models import load
from models.text.messages import Message, Role

TRUTH: dict[str, Any] = json.loads(
    (Path(__file__).parent / "data" / "smollm2_truth.json").read_text(encoding="utf-8")
)
TOLERANCE = {Backend.REFERENCE: 0.0003, Backend.CPU: 0.005}
GREEDY = TRUTH["greedy_exact"]

pytestmark = pytest.mark.network


@pytest.fixture(
    scope="module", params=[Backend.REFERENCE, Backend.CPU], ids=lambda backend: backend.value
)
def engine(request: pytest.FixtureRequest, smollm2_path: Path) -> Engine:
    backend: Backend = request.param
    config = CacheConfig(hot_dtype=HotDtype.F32, backend=backend)
    return Engine(load(smollm2_path, backend=backend), config)


def _decisive_steps(truth: dict[str, Any]) -> int:
    """Steps before the first whose two best logits are too close to call."""
    margins = truth["greedy_top1_minus_top2_logit"]
    return next((i for i, margin in enumerate(margins) if margin < 0.01), len(margins))


@pytest.mark.parametrize("truth", GREEDY, ids=range(len(GREEDY)))
def test_chat_prompt_is_tokenized_as_llama_cpp_does(engine: Engine, truth: dict[str, Any]) -> None:
    messages = [
        Message(role=Role(message["role"]), content=message["content"])
        for message in truth["messages"]
    ]
    assert engine.loaded.template.render(messages) == truth["rendered"]
    assert engine.loaded.template.encode(messages) == truth["prompt_ids"]


@pytest.mark.parametrize("truth", GREEDY, ids=range(len(GREEDY)))
def test_next_token_probabilities_agree(engine: Engine, truth: dict[str, Any]) -> None:
    logits = engine.loaded.model(mx.array([truth["prompt_ids"]]))[0, -1]
    logprobs = logits - mx.logsumexp(logits)
    best = mx.argsort(-logprobs)[:5].tolist()
    assert best == [entry["id"] for entry in truth["next_token_top5"]]
    tolerance = TOLERANCE[engine.plan.backend]
    for entry in truth["next_token_top5"]:
        assert logprobs[entry["id"]].item() == pytest.approx(entry["logprob"], abs=tolerance)


@pytest.mark.parametrize("truth", GREEDY, ids=range(len(GREEDY)))
def test_greedy_answers_are_the_same(engine: Engine, truth: dict[str, Any]) -> None:
    *_, last = engine.generate(Request(prompt=truth["prompt_ids"], max_tokens=64))
    assert isinstance(last, Finished)
    steps = _decisive_steps(truth)
    assert steps >= 5
    assert list(last.completion.tokens[:steps]) == truth["greedy_ids"][:steps]
    if steps == len(truth["greedy_ids"]):
        assert last.completion.text == truth["greedy_text"].removesuffix("<|im_end|>")
        assert last.completion.finish_reason.value == "stop"
