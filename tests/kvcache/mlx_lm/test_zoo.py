"""Every language model of mlx-lm: exact against its own caches, or refused by name."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest
from mlx_lm.models.cache import make_prompt_cache as make_own

from kvcache import CacheConfig, CacheError, HotDtype, make_prompt_cache, mlx_lm
from kvcache.turn import NO_ROPE
from tests.kvcache.mlx_lm import zoo
from tests.kvcache.mlx_lm.naive_caches import naive_caches, ours_of

LOSSLESS = CacheConfig(
    keys="f16", values="f16", hot_dtype=HotDtype.F32, max_tokens=60, hot=6, block=4
)
# Tokens are let go before the 19th; as many fit as a window of the models that have one shows.
SMALL = CacheConfig(
    keys="f16", values="f16", hot_dtype=HotDtype.F32, max_tokens=17, sinks=2, hot=8, block=4
)
WORDS = [(11 * i + 3) % zoo.VOCABULARY for i in range(34)]
FIRST = 12
# First tokens, and how many at a time then: such as a draft's, and a prompt's that let tokens go.
STEPS = ((FIRST, 5), (FIRST, 22), (3, 31), (34, 1))

_LATENT = r"keeps keys of 1 heads of 24 numbers and values of 1 of 8:"
_SHARED = r"asks its \w+ for 'keys_and_values'"
_STATES = "has no layer whose keys and values"
REFUSED = {
    "afm7": _SHARED,
    "bailing_hybrid": _LATENT,
    "bailing_moe_v3": _LATENT,
    "deepseek_v2": r"keeps keys of 4 heads of 24 numbers and values of 4 of 20:",
    "deepseek_v3": _LATENT,
    "deepseek_v32": _LATENT,
    "deepseek_v41": "wants LayerCache:",
    "gemma3n": _SHARED,
    "glm4_moe_lite": _LATENT,
    "glm_moe_dsa": _LATENT,
    "kimi_k25": _LATENT,
    "kimi_k3": _LATENT,
    "kimi_linear": _LATENT,
    "kimi_vl": _LATENT,
    "longcat_flash": _LATENT,
    "longcat_flash_ngram": _LATENT,
    "mamba": _STATES,
    "mamba2": _STATES,
    "mimo_v2_flash": r"keeps keys of 2 heads of 32 numbers and values of 2 of 20:",
    # The keys of its index come with no values.
    "minimax_m3_vl (sparse)": r"keeps keys of 1 heads of 16 numbers and values of 1 of 0:",
    "minicpm3": r"keeps keys of 4 heads of 24 numbers and values of 4 of 32:",
    "mistral4": _LATENT,
    "rwkv7": _STATES,
    "youtu_llm": r"keeps keys of 4 heads of 24 numbers and values of 4 of 20:",
}
# Models whose sinks are met at their true distance.
UNTURNED = {
    # Positions come with the tokens.
    "gpt2",
    "gpt_bigcode",
    # Turns by the length of the text.
    "llama (dynamic)",
    # Calls the parts of its layers, so that none can be looked at alone.
    "iquestloopcoder",
}
# mlx-lm's OLMo takes no mask that is a word, and Phi-3-small adds ones that are true or false:
# their prompts are right one token at a time.
STEP = {"olmo": 1, "phi3small": 1}

# Their queries grow with the position, so that sinks are the same anywhere only if they are one.
SCALED = {"llama4", "ministral3", "mistral3"}

# mlx-lm's own windows show a token more in a part of a prompt than to a single one.
UNEQUAL = {"plamo3"}

Logits = npt.NDArray[np.float32]


@pytest.fixture(autouse=True, scope="module")
def _plain_operations() -> Iterator[None]:
    """MLX compiles small functions by a C++ compiler on a CPU, for seconds each."""
    mx.disable_compile()
    yield
    mx.enable_compile()


def test_every_model_of_mlx_lm_is_here() -> None:
    assert set(zoo.modules()) == {name.split(" (")[0] for name in zoo.MODELS}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_by_name(name: str) -> None:
    with pytest.raises(CacheError, match=f"^{name.split(' (')[0]} {REFUSED[name]}"):
        make_prompt_cache(zoo.make(name), SMALL)


@pytest.mark.parametrize("name", [name for name in zoo.MODELS if name not in REFUSED])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_it_is_exact(name: str) -> None:
    """Greedy tokens and logits, fetched and installed, before tokens are let go and after."""
    model, step = zoo.make(name), STEP.get(name, FIRST)
    config = replace(SMALL, sinks=1) if name in SCALED else SMALL
    small = make_prompt_cache(model, config)
    assert all(layer.stats().sinks_turned for layer in ours_of(small)) == (name not in UNTURNED)
    whole = _answers(model, make_own(model), WORDS[:20], step)
    left = _answers(model, naive_caches(model, small, WORDS), WORDS, step, then=1)
    for way in (contextlib.nullcontext, _installed):
        with way():
            cache = make_prompt_cache(model, LOSSLESS)
            _alike(_answers(model, cache, WORDS[:20], step), whole)
            cache = make_prompt_cache(model, config)
            _alike(_answers(model, cache, WORDS, step, then=1), left)
            for first, then in () if step == 1 or name in UNEQUAL else STEPS:
                cache = make_prompt_cache(model, config)
                _alike(_answers(model, cache, WORDS, first, then=then)[-6:], left[-6:])
                assert all(layer.stats().evicted for layer in ours_of(cache))


@pytest.mark.parametrize("name", [name for name in zoo.MODELS if name not in REFUSED])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_keys_in_bfloat16_tell_the_same_turns(name: str) -> None:
    exact, rounded = zoo.make(name), zoo.make(name)
    rounded.set_dtype(mx.bfloat16)
    pairs = zip(mlx_lm.rotations_of(exact), mlx_lm.rotations_of(rounded), strict=True)
    for want, got in pairs:
        assert (want is None, want is NO_ROPE) == (got is None, got is NO_ROPE)
        if want is not None and got is not None:
            assert want.traditional == got.traditional
            # Angles after 4,096 positions.
            np.testing.assert_allclose(4096 / got.periods, 4096 / want.periods, atol=0.01)


def test_sinks_at_another_distance_would_be_seen() -> None:
    model = zoo.make("llama")
    near = naive_caches(model, make_prompt_cache(model, SMALL), WORDS)
    want = _answers(model, near, WORDS, FIRST, then=1)
    cache = make_prompt_cache(model, replace(SMALL, turn_sinks=False))
    got = _answers(model, cache, WORDS, FIRST, then=1)
    _alike(got[:7], want[:7])
    with pytest.raises(AssertionError, match="Mismatched"):
        _alike(got, want)


@contextlib.contextmanager
def _installed() -> Iterator[None]:
    mlx_lm.install()
    try:
        yield
    finally:
        mlx_lm.uninstall()


def _answers(
    model: Any, caches: list[Any], words: Sequence[int], step: int, then: int | None = None
) -> Logits:
    """Logits after the prompt's parts, of `step` tokens and then of `then`, and 5 greedy ones."""
    said, start = [], 0
    while start < len(words):
        part = words[start : start + step]
        said.append(model(mx.array([part]), cache=caches)[0, -1])
        start, step = start + len(part), then or step
        mx.eval(said)
    for _ in range(5):
        said.append(model(said[-1].argmax()[None, None], cache=caches)[0, -1])
        mx.eval(said)
    return np.stack([np.array(each.astype(mx.float32)) for each in said])


def _alike(got: Logits, want: Logits) -> None:
    assert not np.isnan(want).any()
    np.testing.assert_array_equal(got.argmax(axis=1), want.argmax(axis=1))
    np.testing.assert_allclose(got, want, atol=1e-3 * float(want.max()))
