"""The server's batch against mlx-lm's: the same answers, and less that is computed for them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import BatchGenerator, StopSequences
from mlx_lm.sample_utils import make_logits_processors

from app.sampling import Sampling
from app.serve.batch import Batch
from app.serve.row import sampler
from kvcache import Backend, CacheConfig, make_prompt_cache
from models import load
from models.network.llama import Model
from tests.app.serve.conftest import SHAPE

PLACES, STEP = 3, 64
CONFIG = CacheConfig(max_tokens=200, hot=20, block=32, backend=Backend.CPU)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request. ends: tokens that end it."""

    prompt: list[int]
    tokens: int = 9
    sampling: Sampling = field(default_factory=Sampling)
    penalty: float | None = None
    ends: tuple[int, ...] = ()


Answer = tuple[list[int], list[np.ndarray]]  # tokens, and their log-probabilities


@pytest.fixture(scope="module")
def model(served_path: Path) -> Model:
    return load(served_path, backend=Backend.CPU).model


def _prompt(length: int) -> list[int]:
    return [3 + (11 * at * at + length) % 600 for at in range(length)]


def _insert(batch: BatchGenerator, model: Model, asked: Asked) -> int:
    bias = {5: 1.0} if asked.penalty else None
    (uid,) = batch.insert_segments(
        segments=[[asked.prompt[:3], asked.prompt[3:]]],
        max_tokens=[asked.tokens],
        caches=[make_prompt_cache(model, CONFIG)],
        samplers=[sampler(asked.sampling, SHAPE.vocab)],
        logits_processors=[make_logits_processors(bias, asked.penalty, 20)],
        stop_sequences=[StopSequences([(end,) for end in asked.ends])],
    )
    return int(uid)


def _answers(batch: BatchGenerator, model: Model, asked: list[Asked]) -> Iterator[Answer]:
    """Of all, which are put in one after the other while those before are answered."""
    found: dict[int, Answer] = {}
    waiting = list(asked)
    while waiting or not all(each[0][-1:] == [-1] for each in found.values()):
        if waiting:
            found[_insert(batch, model, waiting.pop(0))] = [], []
        for each in batch.next()[1]:
            tokens, logprobs = found[each.uid]
            tokens.append(each.token)
            logprobs.append(np.asarray(each.logprobs))
            if each.finish_reason:
                assert len(each.all_tokens) == each.prompt_cache[0].offset
                tokens.append(-1)
    batch.close()
    return iter(found.values())


def _both(model: Model, asked: list[Asked]) -> Iterator[tuple[Answer, Answer]]:
    ours = Batch(model, places=PLACES, prefill_step=STEP)
    theirs = BatchGenerator(
        model, completion_batch_size=PLACES, prefill_batch_size=1, prefill_step_size=STEP
    )
    return zip(_answers(ours, model, asked), _answers(theirs, model, asked), strict=True)


@pytest.mark.parametrize("drawn", [False, True])
def test_answers_are_those_of_mlx_lms_batch(model: Model, drawn: bool) -> None:
    sampling = [Sampling(temperature=0.9, top_k=40, seed=at) for at in range(6)]
    asked = [
        Asked(
            prompt=_prompt(length),
            tokens=5 + length % 7,
            sampling=sampling[at] if drawn and at % 2 else Sampling(),
            penalty=1.3 if at % 3 == 0 else None,
        )
        for at, length in enumerate((5, 70, 9, 131, 33, 190))
    ]
    for got, want in _both(model, asked):
        assert got[0] == want[0]
        for one, other in zip(got[1], want[1], strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_prompts_last_token_is_none_of_the_answer(model: Model) -> None:
    prompt = _prompt(12)
    asked = [Asked(prompt=prompt, tokens=tokens, ends=(prompt[-1],)) for tokens in (1, 2)]
    for got, want in _both(model, asked):
        assert got[0] == want[0]
        assert len(got[0]) - 1 == len(got[1]) <= 2


def test_a_token_that_ends_an_answer_is_its_last(model: Model) -> None:
    (first,) = _answers(
        Batch(model, places=1, prefill_step=STEP), model, [Asked(prompt=_prompt(9))]
    )
    third = first[0][2]
    asked = Asked(prompt=_prompt(9), ends=(third,))
    (ended,) = _answers(Batch(model, places=1, prefill_step=STEP), model, [asked])
    assert ended[0] == [*first[0][: first[0].index(third) + 1], -1]


def test_prompts_have_no_logits(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    logits = type(model).logits

    def counted(self: Any, hidden: mx.array) -> mx.array:
        seen.append(hidden.shape[:2])
        return logits(self, hidden)

    monkeypatch.setattr(type(model), "logits", counted)
    asked = [Asked(prompt=_prompt(100), tokens=4)]
    list(_answers(Batch(model, places=1, prefill_step=STEP), model, asked))
    # One more than there are tokens: the next is on its way while one is told.
    assert seen == [(1, 1)] * 5


def test_short_prompts_are_read_between_the_same_two_steps(model: Model) -> None:
    """As many tokens as one long prompt has read of it, of no more prompts than have a place."""
    batch = Batch(model, places=PLACES, prefill_step=STEP)
    for length in (20, 30, 40, 5):
        _insert(batch, model, Asked(prompt=_prompt(length), tokens=3))
    joined, told = list[list[int]](), list[list[int]]()
    for _ in range(6):
        read, answers = batch.next()
        joined.append([each.uid for each in read if each.end_of_prompt])
        told.append([each.uid for each in answers])
    assert joined == [[0, 1], [2], [], [], [3], []]
    assert told == [[], [], [0, 1], [0, 1, 2], [0, 1, 2], [2]]
