"""Tiny files of every architecture against what llama.cpp says of them (`make truth`).

In plain MLX from unencoded weights, and by the CPU kernels from the same weights as Q8_0.
"""

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from kvcache import Backend, BlockPool, CacheConfig, DynamicKVCache, HotDtype, PagedKVCache, resolve
from kvcache.attention import AttendingCache
from kvcache.prompt_cache import from_plan, rows_from_plan
from models.gguf.tensor_types import TensorType
from models.network.architectures import ARCHITECTURES
from models.network.llama import Block, Model
from tests.architectures import fingerprint
from tests.models.network.truth import TRUTH, furthest, open_tiny, told
from tests.tiny_files import PROMPTS, SEED, TINY, VOCABULARY, WINDOW, prompt

KINDS = {Backend.REFERENCE: TensorType.F32, Backend.CPU: TensorType.Q8_0}
TOLERANCE = {Backend.REFERENCE: 0.01, Backend.CPU: 0.02}
# Two tokens this near each other may change places.
MARGIN = 0.02
PIECE = 61


def _paged(model: Model) -> PagedKVCache:
    heads, dim = model.shape.kv_heads, model.shape.head_dim
    pool = BlockPool(pages=20, page_tokens=16, kv_heads=heads, head_dim=dim, dtype=HotDtype.F32)
    return PagedKVCache(pool)


KNOW_NO_WINDOWS: dict[str, Callable[[Model], AttendingCache]] = {
    "dynamic": lambda _: DynamicKVCache(WINDOW, dtype=HotDtype.F32),
    "paged": _paged,
}


@pytest.fixture(scope="module", params=KINDS, ids=lambda backend: backend.value)
def backend(request: pytest.FixtureRequest) -> Backend:
    chosen: Backend = request.param
    return chosen


@pytest.fixture(scope="module", params=TINY)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(name: str, backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("tiny")
    return open_tiny(folder, name, kind=KINDS[backend], backend=backend)


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
    assert furthest(truth, told(model, backend)(ids)) < TOLERANCE[backend]


@pytest.mark.parametrize("index", range(len(PROMPTS)), ids=PROMPTS)
def test_a_prompt_in_pieces_and_its_answer(
    name: str, model: Model, backend: Backend, index: int
) -> None:
    """The end of the prompt and the answer token by token, as they are generated."""
    truth = TRUTH[name]["prompts"][index]
    ids = prompt(PROMPTS[index])
    singles = ids[-3:] + truth["greedy_ids"][:-1]
    ask = told(model, backend)
    for start in range(0, len(ids) - 3, PIECE):
        ask(ids[start : min(start + PIECE, len(ids) - 3)])
    rows = np.concatenate([ask([token]) for token in singles])
    assert furthest(truth, rows[:3]) < TOLERANCE[backend]
    margins = np.array(truth["greedy_top1_minus_top2_logit"])
    decided = margins >= MARGIN
    assert decided.sum() > len(margins) / 2
    got = rows[2:].argmax(axis=-1)
    assert got[decided].tolist() == np.array(truth["greedy_ids"])[decided].tolist()


def test_without_a_cache(name: str, model: Model, backend: Backend) -> None:
    truth = TRUTH[name]["prompts"][1]
    logits = np.asarray(model(mx.array([prompt(PROMPTS[1])])))[0]
    assert furthest(truth, logits) < TOLERANCE[backend]


def test_rows_of_a_batch_are_as_alone(model: Model, backend: Backend) -> None:
    lengths = 97, 31
    config = CacheConfig(max_tokens=WINDOW, hot=WINDOW, hot_dtype=HotDtype.F32, backend=backend)
    plan, padding = resolve(config, model.shape), [97 - length for length in lengths]
    together = rows_from_plan(plan, model.rotations, left_padding=padding)
    rows = [[0] * (97 - length) + prompt(length) for length in lengths]
    alone = [from_plan(plan, model.rotations) for _ in lengths]
    for ids in (rows, [[5], [7]]):
        batch = np.asarray(model(mx.array(ids), together))[:, -1]
        for at, cache in enumerate(alone):
            one = np.asarray(model(mx.array([ids[at][-lengths[at] :]]), cache))[0, -1]
            np.testing.assert_allclose(batch[at], one, atol=0.02 * np.abs(one).max())


@pytest.mark.parametrize("each", TINY)
def test_the_kernels_compute_all_layers_in_one_call(
    each: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_tiny(tmp_path, each, kind=TensorType.Q8_0, backend=Backend.CPU)
    monkeypatch.setattr(Block, "__call__", lambda *_: pytest.fail("a layer by itself"))
    ask = told(model, Backend.CPU)
    ask(prompt(PROMPTS[0]))
    ask([VOCABULARY - 1])


@pytest.mark.parametrize("make", KNOW_NO_WINDOWS.values(), ids=KNOW_NO_WINDOWS)
def test_layers_show_their_window_of_caches_that_hold_more(
    tmp_path: Path, make: Callable[[Model], AttendingCache]
) -> None:
    model, ids = open_tiny(tmp_path, "gemma3"), prompt(PROMPTS[-1])
    caches = [make(model) for _ in model.layers]
    rows = [np.asarray(model(mx.array([some]), caches))[0] for some in (ids[:-1], ids[-1:])]
    truth = TRUTH["gemma3"]["prompts"][-1]
    assert furthest(truth, np.concatenate(rows)) < TOLERANCE[Backend.REFERENCE]
