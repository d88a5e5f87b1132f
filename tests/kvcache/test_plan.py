import pytest

from kvcache import Backend, CacheConfig, CacheError, HotDtype, ModelShape, resolve
from kvcache.config import parse_bytes
from kvcache.prompt_cache import from_plan
from kvcache.stats import sum_layers

TINYLLAMA = ModelShape(layers=22, kv_heads=4, head_dim=64, context=2048)
LLAMA_2_7B = ModelShape(layers=32, kv_heads=32, head_dim=128, context=4096)


def test_bytes_of_known_models() -> None:
    # 2 (K, V) * 22 layers * 4 heads * 64 * 2 bytes, and the same for Llama-2-7B by hand.
    assert resolve(CacheConfig(), TINYLLAMA).token_bytes == 22528
    assert resolve(CacheConfig(), LLAMA_2_7B).token_bytes == 524288
    assert resolve(CacheConfig(hot_dtype=HotDtype.F32), TINYLLAMA).token_bytes == 45056


def test_the_window_defaults_to_the_models_context() -> None:
    plan = resolve(CacheConfig(), TINYLLAMA)
    assert (plan.max_tokens, plan.capped_from) == (2048, None)
    assert plan.max_bytes == 2048 * 22528


def test_a_longer_window_is_capped_unless_allowed() -> None:
    plan = resolve(CacheConfig(max_tokens=5000), TINYLLAMA)
    assert (plan.max_tokens, plan.capped_from) == (2048, 5000)
    plan = resolve(CacheConfig(max_tokens=5000, beyond_context=True), TINYLLAMA)
    assert (plan.max_tokens, plan.capped_from) == (5000, None)


def test_a_budget_buys_whole_tokens() -> None:
    assert resolve(CacheConfig.for_budget(22528 * 101 + 22527), TINYLLAMA).max_tokens == 101
    assert resolve(CacheConfig.for_budget("16MiB"), TINYLLAMA).max_tokens == 744
    generous = resolve(CacheConfig.for_budget("16GiB"), TINYLLAMA)
    assert (generous.max_tokens, generous.capped_from) == (2048, None)
    both = CacheConfig(budget=22528 * 500, max_tokens=300)
    assert resolve(both, TINYLLAMA).max_tokens == 300


def test_a_budget_below_one_token_is_refused() -> None:
    with pytest.raises(CacheError, match="22527 bytes holds no token"):
        resolve(CacheConfig(budget=22527), TINYLLAMA)


@pytest.mark.parametrize(
    ("text", "size"),
    [("64MiB", 64 << 20), ("1.5 GiB", 3 << 29), ("500MB", 500_000_000), ("1048576", 1 << 20)],
)
def test_sizes_are_parsed(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "0", "-5MiB", "12 parsecs", "1e9", "0.1"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(CacheError, match="expected a number of bytes"):
        parse_bytes(text)


@pytest.mark.parametrize("bad", [{"max_tokens": 0}, {"budget": -1}])
def test_impossible_settings_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(CacheError, match="expected at least 1"):
        CacheConfig(**bad)


def test_one_cache_per_layer_sums_up() -> None:
    caches = from_plan(resolve(CacheConfig(max_tokens=100), TINYLLAMA))
    assert len(caches) == 22
    assert {cache.max_seq_len for cache in caches} == {100}
    assert sum_layers(cache.stats() for cache in caches).allocated_bytes == 0
    with pytest.raises(ValueError, match="no layer"):
        sum_layers([])


def test_the_gpu_backend_needs_a_gpu() -> None:
    import mlx.core as mx

    if mx.default_device().type == mx.DeviceType.gpu:
        assert Backend.AUTO.resolve() is Backend.GPU
        return
    assert Backend.AUTO.resolve() is Backend.CPU
    with pytest.raises(CacheError, match="needs a Metal or CUDA device"):
        Backend.GPU.resolve()
