"""mlx-lm's batches of our caches: a sequence among others answers as it does alone."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import BatchGenerator, generate_step
from mlx_lm.models.cache import make_prompt_cache as make_own

from kvcache import (
    Backend,
    CacheConfig,
    CacheError,
    HotDtype,
    RowsKVCache,
    TwoTierKVCache,
    make_prompt_cache,
)
from tests.kvcache.mlx_lm import zoo
from tests.kvcache.tiny_llama import DIM, HKV, make_model

LOSSLESS = CacheConfig(
    keys="f16", values="f16", hot_dtype=HotDtype.F32, max_tokens=60, hot=16, block=8
)
LENGTHS = (1, 7, 23, 70, 5, 40, 24)
STEP, TOKENS = 32, 5
# Windows, sinks of attention's own, states beside keys and values, several caches in a layer.
MODELS = ("llama", "gemma3", "gpt_oss", "qwen3_next", "falcon_h1")
Answer = tuple[list[int], list[np.ndarray]]


def _prompts(vocabulary: int) -> list[list[int]]:
    chance = random.Random(2)
    return [[chance.randrange(1, vocabulary) for _ in range(length)] for length in LENGTHS]


def _alone(model: Any, prompt: list[int], config: CacheConfig) -> Answer:
    cache = make_prompt_cache(model, config)
    steps = generate_step(
        mx.array(prompt), model, max_tokens=TOKENS, prompt_cache=cache, prefill_step_size=STEP
    )
    found = [(int(token), np.asarray(said.astype(mx.float32))) for token, said in steps]
    return [token for token, _ in found], [said for _, said in found]


def _together(
    model: Any, prompts: Sequence[list[int]], config: CacheConfig | None, at_once: int
) -> list[Answer]:
    """None for mlx-lm's own caches."""
    generator = BatchGenerator(
        model, max_tokens=TOKENS, prefill_batch_size=at_once, prefill_step_size=STEP
    )
    caches = [
        make_own(model) if config is None else make_prompt_cache(model, config) for _ in prompts
    ]
    found: dict[int, Answer] = {uid: ([], []) for uid in generator.insert(prompts, caches=caches)}
    while responses := generator.next_generated():
        for each in responses:
            found[each.uid][0].append(each.token)
            found[each.uid][1].append(np.asarray(each.logprobs.astype(mx.float32)))
    generator.close()
    assert all(cache.empty() for cache in caches[0])  # those that were given stay as they were
    return list(found.values())


def test_states_that_take_padding_for_tokens_do_so_with_mlx_lm_s_own_caches() -> None:
    """Which the docs say; without padding rows are what they are alone."""
    model, prompts = zoo.make("nemotron_h"), _prompts(zoo.VOCABULARY)
    whole = replace(LOSSLESS, max_tokens=200)  # as mlx-lm's, lets nothing go
    alone = [_alone(model, prompt, whole) for prompt in prompts]
    _assert_alike(_together(model, prompts, whole, 1), alone)
    padded = _together(model, prompts, whole, 8)
    _assert_alike(padded, _together(model, prompts, None, 8))
    with pytest.raises(AssertionError, match="Mismatched"):
        _assert_alike(padded, alone)


def _assert_alike(got: Sequence[Answer], want: Sequence[Answer]) -> None:
    for (_, said), (_, wanted) in zip(got, want, strict=True):
        for one, other in zip(said, wanted, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-3)


@pytest.mark.usefixtures("with_and_without_hook")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_row_answers_as_alone(name: str) -> None:
    model, prompts = zoo.make(name), _prompts(zoo.VOCABULARY)
    alone = [_alone(model, prompt, LOSSLESS) for prompt in prompts]
    for at_once in (1, 8):
        _assert_alike(_together(model, prompts, LOSSLESS, at_once), alone)


@pytest.mark.usefixtures("with_and_without_hook")
@pytest.mark.parametrize("backend", [Backend.CPU, Backend.REFERENCE])
def test_encoded_rows_too(backend: Backend) -> None:
    """Whatever is beside a row, it is cut and encoded as alone."""
    model, prompts = make_model(), _prompts(100)
    config = replace(LOSSLESS, keys="h8", values="h8", backend=backend)
    alone = [_alone(model, prompt, config) for prompt in prompts]
    _assert_alike(_together(model, prompts, config, 8), alone)


def _tokens(length: int, seed: int, batch: int = 2) -> mx.array:
    return mx.random.normal((batch, HKV, length, DIM), key=mx.random.key(seed))


@pytest.mark.usefixtures("with_and_without_hook")
def test_a_mask_of_a_callers_own_is_obeyed() -> None:
    """It hides the newest token but one, which no rule of ours would."""
    config = replace(LOSSLESS, max_tokens=200)
    rows = RowsKVCache.of([TwoTierKVCache.from_config(config) for _ in range(2)])
    rows.prepare(lengths=[9, 4])
    k, v, q = _tokens(9, 1), _tokens(9, 2), _tokens(1, 3)
    rows.make_mask(9)
    rows.update_and_fetch(k, v)
    rows.finalize()
    given = rows.make_mask(1)
    assert isinstance(given, mx.array)
    mask = given & (mx.arange(10) != 8)
    keys, values = rows.update_and_fetch(_tokens(1, 4), _tokens(1, 5))
    out = mx.fast.scaled_dot_product_attention(q, keys, values, scale=0.3, mask=mask)
    for row, own in enumerate((9, 4)):
        held = [(k, _tokens(1, 4)), (v, _tokens(1, 5))]
        shown = [
            mx.concatenate([x[row : row + 1, :, : own - 1], new[row : row + 1]], axis=2)
            for x, new in held
        ]
        want = mx.fast.scaled_dot_product_attention(q[row : row + 1], *shown, scale=0.3)
        np.testing.assert_allclose(np.asarray(out[row]), np.asarray(want[0]), atol=1e-5)


def test_masks_are_left_out_where_they_say_nothing() -> None:
    rows = RowsKVCache.of([TwoTierKVCache.from_config(LOSSLESS) for _ in range(2)])
    assert rows.make_mask(3) == "causal"
    assert rows.make_mask(1) is None
    shown = rows.make_mask(3, return_array=True)
    assert isinstance(shown, mx.array)
    assert shown.shape == (2, 1, 3, 3)
    rows.update_and_fetch(_tokens(3, 1), _tokens(3, 2))
    assert rows.make_mask(1) is None
    rows.prepare(lengths=[2, 1])
    mask = rows.make_mask(2)
    assert isinstance(mask, mx.array)
    assert mask[:, 0].tolist() == [
        [[True, True, True, True, False], [True] * 5],
        [[False, True, True, True, True], [True] * 5],
    ]


def test_tokens_of_other_rows_are_refused() -> None:
    rows = RowsKVCache.of([TwoTierKVCache.from_config(LOSSLESS) for _ in range(2)])
    with pytest.raises(CacheError, match="expected 2 batch rows"):
        rows.update_and_fetch(_tokens(1, 1, batch=3), _tokens(1, 1, batch=3))
    assert rows.empty()
