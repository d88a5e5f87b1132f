"""Small files of every tensor type against llama.cpp, given what gguf-py decodes (`make truth`).

So a type is right in all places of a network: as embeddings, in products of one row, of a few
and of many, and as the output.
"""

import numpy as np
import pytest

from kvcache import Backend
from models.gguf.tensor_types import TensorType
from models.network.llama import Block, Model
from tests.models.network.truth import TRUTH_OF_TYPES, furthest, opened, told
from tests.pure_files import PROMPT, fingerprint, write_pure
from tests.tiny_files import prompt

TOLERANCE = {Backend.REFERENCE: 1e-4, Backend.CPU: 1e-3}
# Rows of the pieces in which a prompt is read; what is left of it comes token by token.
FEW = (8, 7, 6, 5, 4, 3, 2, 5)


@pytest.fixture(scope="module", params=TensorType, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> TensorType:
    chosen: TensorType = request.param
    return chosen


@pytest.fixture(scope="module", params=TOLERANCE, ids=lambda backend: backend.value)
def backend(request: pytest.FixtureRequest) -> Backend:
    chosen: Backend = request.param
    return chosen


@pytest.fixture(scope="module")
def model(kind: TensorType, backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("pure") / f"{kind.name}.gguf"
    return opened(write_pure(path, kind), backend)


@pytest.mark.parametrize("kind", TensorType)
def test_the_truth_is_of_these_files(kind: TensorType) -> None:
    assert TRUTH_OF_TYPES[kind.name]["fingerprint"] == fingerprint(kind)


def test_no_answer_is_too_close_to_call() -> None:
    (truths,) = zip(*(file["prompts"] for file in TRUTH_OF_TYPES.values()), strict=True)
    assert min(min(truth["greedy_top1_minus_top2_logit"]) for truth in truths) > 5e-3


def test_a_prompt_in_one_piece(kind: TensorType, backend: Backend, model: Model) -> None:
    (truth,) = TRUTH_OF_TYPES[kind.name]["prompts"]
    assert furthest(truth, told(model, backend)(prompt(PROMPT))) < TOLERANCE[backend]


def test_few_tokens_at_a_time_and_the_answer(
    kind: TensorType, backend: Backend, model: Model
) -> None:
    (truth,) = TRUTH_OF_TYPES[kind.name]["prompts"]
    ids, ask = prompt(PROMPT), told(model, backend)
    for start, rows in zip(np.cumsum((0, *FEW)).tolist(), FEW, strict=False):
        ask(ids[start : start + rows])
    singles = ids[sum(FEW) :] + truth["greedy_ids"][:-1]
    rows = np.concatenate([ask([token]) for token in singles])
    assert furthest(truth, rows[: PROMPT - sum(FEW)]) < TOLERANCE[backend]
    assert rows[PROMPT - sum(FEW) - 1 :].argmax(axis=-1).tolist() == truth["greedy_ids"]


@pytest.mark.parametrize("backend", [Backend.CPU], indirect=True)
def test_the_kernels_take_every_type(
    backend: Backend, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Block, "__call__", lambda *_: pytest.fail("a layer in plain MLX"))
    ask = told(model, backend)
    ask(prompt(PROMPT))
    ask([PROMPT])
