"""Every language model of mlx-lm: exact against its own caches, or refused by name."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest
from mlx_lm.models.cache import CacheList, KVCache
from mlx_lm.models.cache import make_prompt_cache as make_own

from kvcache import CacheConfig, CacheError, HotDtype, TwoTierKVCache, make_prompt_cache, mlx_lm
from kvcache.tiers.ledger import TierSizes
from tests.kvcache.mlx_lm import zoo

LOSSLESS = CacheConfig(
    keys="f16", values="f16", hot_dtype=HotDtype.F32, max_tokens=60, hot=6, block=4
)
# Tokens are let go from the 18th on; as many fit as a window of the models that have one shows.
SMALL = CacheConfig(
    keys="f16", values="f16", hot_dtype=HotDtype.F32, max_tokens=17, sinks=2, hot=8, block=4
)
WORDS = [(11 * i + 3) % zoo.VOCABULARY for i in range(34)]
FIRST = 12

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
# mlx-lm's OLMo takes no mask that is a word: its prompts go one by one.
STEP = {"olmo": 1}

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
    with pytest.raises(CacheError, match=f"Model {REFUSED[name]}"):
        make_prompt_cache(zoo.make(name), SMALL)


@pytest.mark.parametrize("name", [name for name in zoo.MODELS if name not in REFUSED])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_it_is_exact(name: str) -> None:
    """Greedy tokens and logits, fetched and installed, before tokens are let go and after."""
    model, step = zoo.make(name), STEP.get(name, FIRST)
    layers = make_prompt_cache(model, SMALL)
    ours = [layer for layer in _leaves(layers) if isinstance(layer, TwoTierKVCache)]
    assert all(layer.stats().sinks_turned for layer in ours) == (name not in UNTURNED)
    whole = _answers(model, make_own(model), WORDS[:20], step)
    left = _answers(model, _oracles(model, layers), WORDS, step, then=1)
    for installs in (False, True):
        if installs:
            mlx_lm.install()
        try:
            got = _answers(model, make_prompt_cache(model, LOSSLESS), WORDS[:20], step)
            small = make_prompt_cache(model, SMALL)
            after = _answers(model, small, WORDS, step, then=1)
        finally:
            mlx_lm.uninstall()
        assert any(
            layer.stats().evicted for layer in _leaves(small) if isinstance(layer, TwoTierKVCache)
        )
        _alike(got, whole)
        _alike(after, left)


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


def _leaves(caches: Sequence[Any]) -> Iterator[Any]:
    for cache in caches:
        yield from _leaves(cache.caches) if isinstance(cache, CacheList) else [cache]


def _replaced(
    caches: Sequence[Any], kinds: Iterator[Any], make: Callable[[Any, Any], Any]
) -> list[Any]:
    """The caches, each with another in its place."""
    return [
        CacheList(*_replaced(cache.caches, kinds, make))
        if isinstance(cache, CacheList)
        else make(cache, next(kinds))
        for cache in caches
    ]


class _At(KVCache):  # type: ignore[misc]  # mlx-lm tells no types
    """Holds the first tokens alone, as if they came at a later position."""

    def __init__(self, position: int) -> None:
        super().__init__()
        self.offset = position

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        if self.keys is not None:
            keys = mx.concatenate([self.keys, keys], axis=2)
            values = mx.concatenate([self.values, values], axis=2)
        self.keys, self.values = keys, values
        self.offset += 1
        return keys, values

    def make_mask(self, n: int, return_array: bool = False, window_size: int | None = None) -> Any:
        seen = 1 if self.keys is None else self.keys.shape[2] + 1
        return mx.array([[True] * seen]) if return_array or window_size else None


class _Oracle(KVCache):  # type: ignore[misc]  # mlx-lm tells no types
    """Holds all; shows sinks and a window, the sinks as they are right before it, if `near`."""

    def __init__(self, sizes: TierSizes, near: dict[int, mx.array]) -> None:
        super().__init__()
        self.sizes, self.near = sizes, near

    def gone(self) -> int:
        """Tokens let go before the next one."""
        sizes = self.sizes
        full = max(0, self.offset - sizes.pinned - sizes.hot) // sizes.block
        return max(0, full - sizes.slots) * sizes.block

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        gone, pinned = self.gone(), self.sizes.pinned
        keys, values = super().update_and_fetch(keys, values)
        if not gone:
            return keys, values
        sinks = self.near.get(gone, keys[:, :, :pinned])
        keys = mx.concatenate([sinks, keys[:, :, pinned + gone :]], axis=2)
        return keys, mx.concatenate([values[:, :, :pinned], values[:, :, pinned + gone :]], axis=2)

    def make_mask(self, n: int, return_array: bool = False, window_size: int | None = None) -> Any:
        gone, pinned = self.gone(), self.sizes.pinned
        if not gone:
            return super().make_mask(n, return_array=return_array, window_size=window_size)
        assert n == 1
        if window_size is None:
            return mx.array([[True] * (self.offset + 1 - gone)]) if return_array else None
        positions = [*range(pinned), *range(pinned + gone, self.offset + 1)]
        return mx.array([[self.offset < each + window_size for each in positions]])


def _oracles(model: Any, caches: list[Any]) -> list[Any]:
    """The caches of a model by which what ours of these sizes give is right.

    Sinks are computed anew by the model itself for each distance at which they are met.
    """
    own, ours = make_own(model), list(_leaves(caches))
    full = [layer for layer in ours if isinstance(layer, TwoTierKVCache)]
    sizes = next((each.plan.sizes for each in full if each.plan.sizes.window is None), None)
    near: dict[int, list[Any]] = {}
    for gone in range(4, len(WORDS), 4) if sizes else ():

        def shifted(cache: Any, layer: Any, gone: int = gone) -> Any:
            return _At(gone) if isinstance(layer, TwoTierKVCache) else cache

        near[gone] = _replaced(make_own(model), iter(ours), shifted)
        for word in WORDS[: sizes.pinned]:
            model(mx.array([[word]]), cache=near[gone])
    keys = {gone: list(_leaves(each)) for gone, each in near.items()}
    places = iter(range(len(ours)))

    def oracle(cache: Any, layer: Any) -> Any:
        place = next(places)
        if not isinstance(layer, TwoTierKVCache) or layer.plan.sizes.window is not None:
            return cache
        turned = layer.stats().sinks_turned
        shown = {gone: each[place].keys for gone, each in keys.items()} if turned else {}
        return _Oracle(layer.plan.sizes, shown)

    return _replaced(own, iter(ours), oracle)
