from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from kvcache import (
    Backend,
    CacheConfig,
    CacheError,
    HotDtype,
    ModelShape,
    TwoTierKVCache,
    resolve,
)
from kvcache.codecs import NAMES
from kvcache.config import parse_bytes
from kvcache.prompt_cache import from_plan
from kvcache.stats import sum_layers
from kvcache.tiers.ledger import TierSizes

TINYLLAMA = ModelShape(layers=22, kv_heads=4, head_dim=64, context=2048)
LLAMA_2_7B = ModelShape(layers=32, kv_heads=32, head_dim=128, context=4096)
SMALL = ModelShape(layers=2, kv_heads=3, head_dim=16, context=500)


def test_bytes_of_known_models() -> None:
    # 2 (K, V) * 22 layers * 4 heads * 64 * 2 bytes, and the same for Llama-2-7B by hand.
    assert resolve(CacheConfig(), TINYLLAMA).token_bytes == 22528
    assert resolve(CacheConfig(), LLAMA_2_7B).token_bytes == 524288
    assert resolve(CacheConfig(hot_dtype=HotDtype.F32), TINYLLAMA).token_bytes == 45056
    # A block of 64: keys 64*64*5/8 + 2*64*2 scales and zeros, values 64*64*3/8 + 64*2.
    block = 22 * 4 * (2560 + 256 + 1536 + 128)
    plan = resolve(CacheConfig(keys="hkivi5", values="turbo3u"), TINYLLAMA)
    assert plan.block_bytes == block
    assert plan.cold_bits == pytest.approx((5.5 + 3.25) / 2)
    # D 128 halves what norms cost: 3 + 16/128.
    plan = resolve(CacheConfig(keys="turbo3", values="turbo3"), LLAMA_2_7B)
    assert plan.cold_bits == pytest.approx(3.125)


def test_the_tiers_fill_the_models_context() -> None:
    plan = resolve(CacheConfig(hot=256, block=64, sinks=4), TINYLLAMA)
    # What sinks, hot tokens and an unfinished block leave of 2048, in whole blocks.
    assert plan.sizes.slots == 26
    assert plan.max_tokens == 4 + 26 * 64 + 256 + 63
    assert plan.max_bytes == (4 + 319) * 22528 + 26 * plan.block_bytes
    assert (plan.capped_from, plan.hot_capped_from) == (None, None)


def test_a_longer_window_is_capped_unless_allowed() -> None:
    plan = resolve(CacheConfig(max_tokens=5000), TINYLLAMA)
    assert plan.capped_from == 5000
    assert plan.max_tokens <= 2048
    plan = resolve(CacheConfig(max_tokens=5000, beyond_context=True), TINYLLAMA)
    assert plan.capped_from is None
    assert 5000 - 64 < plan.max_tokens <= 5000


@pytest.mark.parametrize("budget", [3 << 20, 10_000_000, 20_000_000])
@pytest.mark.parametrize("kv", [("hkivi5", "turbo3u"), ("f16", "f16"), ("q8", "q2")])
def test_a_budget_is_used_and_never_passed(budget: int, kv: tuple[str, str]) -> None:
    plan = resolve(CacheConfig.for_budget(budget, keys=kv[0], values=kv[1]), TINYLLAMA)
    assert plan.max_bytes <= budget
    full = plan.max_tokens > 2048 - 64
    assert full or budget - plan.max_bytes < plan.block_bytes + plan.token_bytes
    assert plan.sizes.hot == min(256, (budget // 22528 - 4) // 2 - 63)


def test_a_window_bounds_a_budget() -> None:
    both = CacheConfig(budget=100 << 20, max_tokens=900)
    assert 900 - 64 < resolve(both, TINYLLAMA).max_tokens <= 900
    generous = resolve(CacheConfig.for_budget("16GiB"), TINYLLAMA)
    assert generous.capped_from is None
    assert 2048 - 64 < generous.max_tokens <= 2048


def test_a_small_window_shortens_the_hot_tier_and_says_so() -> None:
    plan = resolve(CacheConfig(max_tokens=100), TINYLLAMA)
    assert (plan.sizes.hot, plan.sizes.slots, plan.hot_capped_from) == (33, 0, 256)
    assert plan.max_tokens == 100


def test_what_holds_nothing_is_refused() -> None:
    with pytest.raises(CacheError, match=r"does not hold 4 pinned tokens .* give a larger `bud"):
        resolve(CacheConfig(budget=22528 * 67), TINYLLAMA)
    with pytest.raises(CacheError, match="a window of 67 tokens does not hold 4 pinned"):
        resolve(CacheConfig(max_tokens=67), TINYLLAMA)
    short = replace(TINYLLAMA, context=60)
    for config in (CacheConfig(), CacheConfig(max_tokens=900), CacheConfig.for_budget("64MiB")):
        with pytest.raises(
            CacheError, match=r"trained for 60 .* `beyond_context` with `max_tokens` 68 "
        ):
            resolve(config, short)
    with pytest.raises(
        CacheError, match=r"a window of 67 tokens .* give a larger `max_tokens`, or sma"
    ):
        resolve(CacheConfig(max_tokens=67, beyond_context=True), short)
    assert resolve(CacheConfig(max_tokens=68, beyond_context=True), short).max_tokens == 68
    odd = replace(TINYLLAMA, head_dim=72)
    with pytest.raises(CacheError, match="got head dimension 72"):
        resolve(CacheConfig(), odd)
    assert resolve(CacheConfig(keys="q8", values="q4"), odd).block_bytes > 0


# Five layers with a window of 1024, then one that sees all.
GEMMA_3_4B = ModelShape(
    layers=34,
    kv_heads=4,
    head_dim=256,
    context=131072,
    windows=tuple(None if layer % 6 == 5 else 1024 for layer in range(34)),
)


def test_windows_are_held_in_the_fewest_bytes() -> None:
    config = CacheConfig(max_tokens=32768, backend=Backend.REFERENCE)
    plan = resolve(config, GEMMA_3_4B)
    window, whole = plan.layer_sizes[0], plan.layer_sizes[5]
    assert (whole, whole.window) == (plan.sizes, None)
    assert plan.kinds == {window: 29, whole: 5}
    # 256 unencoded and 12 blocks always hold 1024; all of them unencoded take twice as much.
    assert window == TierSizes(pinned=0, hot=256, block=64, slots=12, window=1024)
    block = 4 * (256 * 64 * 8 // 8 + 2 * 256 * 2 + 64 * 2)
    assert plan.block_bytes == 34 * block
    of_window = (256 + 63) * 4096 + 12 * block
    of_whole = (4 + 256 + 63) * 4096 + whole.slots * block
    assert plan.max_bytes == 29 * of_window + 5 * of_whole
    assert plan.layer_bytes == of_whole
    # Encoding nothing saves nothing: then a window is one ring.
    plan = resolve(replace(config, keys="f16", values="f16"), GEMMA_3_4B)
    assert plan.layer_sizes[0] == TierSizes(pinned=0, hot=1024, block=64, slots=0, window=1024)
    assert plan.max_bytes < resolve(config, replace(GEMMA_3_4B, windows=())).max_bytes


def test_a_window_that_holds_as_much_as_all_others_is_as_they_are() -> None:
    for tokens in (700, 1024):
        plan = resolve(CacheConfig(max_tokens=tokens), GEMMA_3_4B)
        assert plan.layer_sizes == (plan.sizes,) * 34
    plan = resolve(CacheConfig(max_tokens=1100), GEMMA_3_4B)
    assert plan.layer_sizes[0].window == 1024
    assert 1024 < plan.max_tokens <= 1100
    two = replace(GEMMA_3_4B, windows=tuple([512, 2048] * 17))
    plan = resolve(CacheConfig(max_tokens=2000), two)
    assert [sizes.window for sizes in plan.layer_sizes[:2]] == [512, None]


@pytest.mark.parametrize("mib", [16, 40, 64, 68, 69, 70, 85, 200, 900])
def test_a_budget_pays_for_windows_first(mib: int) -> None:
    plan = resolve(CacheConfig(budget=mib << 20, backend=Backend.REFERENCE), GEMMA_3_4B)
    assert plan.max_bytes <= mib << 20
    windows = plan.layer_sizes[0].window is not None
    assert windows == (plan.max_tokens > 1024)
    assert windows == (mib > 68)
    # What is left would not pay for a block more, nor for windows that are whole.
    one = 5 * plan.block_bytes // 34 if windows else plan.block_bytes + plan.token_bytes
    full = plan.max_tokens > (131072 if windows else 1024) - 64
    assert full or (mib << 20) - plan.max_bytes < one + plan.token_bytes


def test_a_budget_that_does_not_hold_its_windows_is_refused() -> None:
    """Of 32 tokens: fewer than sinks and a block, which other layers must hold."""
    shape = replace(SMALL, layers=3, windows=(32, None, 32), context=5000)
    token, window = 2 * 3 * 16 * 2, 32 + 63
    least = (2 * window + 68) * token
    with pytest.raises(CacheError, match=rf"this model needs {least} bytes for them; give a larg"):
        resolve(CacheConfig(budget=least - 1), shape)
    plan = resolve(CacheConfig(budget=least), shape)
    assert (plan.max_bytes, plan.max_tokens) == (least, 68)


def test_where_all_layers_have_windows_a_budget_buys_the_whole_context() -> None:
    shape = replace(SMALL, windows=(32, 32))
    plan = resolve(CacheConfig(budget=100_000), shape)
    assert plan.max_tokens > 500 - 64
    assert plan.max_bytes == 2 * (32 + 63) * 2 * 3 * 16 * 2
    with pytest.raises(CacheError, match="a budget of 9000 bytes"):
        resolve(CacheConfig(budget=9000), shape)
    with pytest.raises(CacheError, match="got windows of 3 layers, expected 2"):
        replace(SMALL, windows=(1, 2, 3))


@pytest.mark.parametrize("pair", ["f16/f16", "hkivi5/turbo3u", "q8/kvarn3"])
def test_planned_bytes_of_windows_are_the_bytes_of_the_arrays(pair: str) -> None:
    keys, values = pair.split("/")
    config = CacheConfig(keys=keys, values=values, hot=9, block=8, backend=Backend.REFERENCE)
    shape = replace(SMALL, layers=4, windows=(53, None, 53, 21))
    plan = resolve(config, shape)
    caches = from_plan(plan, None)
    for cache in caches:
        k = mx.random.normal((1, 3, 700, 16), key=mx.random.key(1))
        cache.append(k, k)
    total = sum_layers(cache.stats() for cache in caches)
    assert total.held_bytes <= total.allocated_bytes == plan.max_bytes
    assert sum(array.nbytes for cache in caches for array in cache.pending()) == plan.max_bytes
    assert plan.bytes_of(20) < plan.bytes_of(60) < plan.bytes_of(400) < plan.max_bytes


@pytest.mark.parametrize("name", NAMES)
def test_planned_bytes_are_the_bytes_of_the_arrays(name: str) -> None:
    config = CacheConfig(
        keys=name, values=name, hot=24, block=8, max_tokens=100, backend=Backend.REFERENCE
    )
    plan = resolve(config, SMALL)
    caches = from_plan(plan, None)
    rng = np.random.default_rng(3)
    for cache in caches:
        k, v = (mx.array(rng.normal(size=(1, 3, 211, 16)).astype(np.float32)) for _ in "kv")
        cache.append(k, v)
    total = sum_layers(cache.stats() for cache in caches)
    assert total.held_bytes <= total.allocated_bytes == plan.max_bytes
    arrays = sum(array.nbytes for cache in caches for array in cache.pending())
    assert arrays == plan.max_bytes
    assert 8 * total.cold_bytes / (2 * 2 * 3 * 16 * total.cold) == pytest.approx(plan.cold_bits)


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


@pytest.mark.parametrize(
    "bad", [{"max_tokens": 0}, {"budget": -1}, {"hot": -1}, {"block": 0}, {"sinks": -2}]
)
def test_impossible_settings_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(CacheError, match="expected at least"):
        CacheConfig(**bad)


def test_an_unknown_codec_is_refused_at_once() -> None:
    with pytest.raises(CacheError, match="did you mean hkivi5"):
        CacheConfig(keys="hkivi6")


def test_a_configuration_survives_json() -> None:
    config = CacheConfig(budget=5 << 20, keys="h8", hot_dtype=HotDtype.BF16, keep=9)
    assert CacheConfig.from_dict(config.as_dict()) == config
    assert CacheConfig.from_dict({}) == CacheConfig()
    with pytest.raises(CacheError, match="not a cache configuration"):
        CacheConfig.from_dict({"hot_tokens": 3})
    with pytest.raises(CacheError, match="not a cache configuration"):
        CacheConfig.from_dict({"backend": "tpu"})


def test_stats_of_no_layer_are_refused() -> None:
    with pytest.raises(CacheError, match="no layer"):
        sum_layers([])


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has one, as far as plans can tell."""
    monkeypatch.setattr("kvcache.config.on_gpu", lambda: True)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("fields", "dim", "reason"),
    [
        ({"keys": "turbo3p"}, 64, "no GPU kernel reads codec turbo3p of head dimension 64"),
        ({"values": "turbo2p"}, 64, "no GPU kernel reads codec turbo2p"),
        ({"keys": "f16", "hot_dtype": "bf16"}, 64, "reads codec f16 as bfloat16"),
        ({"keys": "q4", "values": "q4"}, 264, "got head dimension 264"),
        ({"keys": "q4", "values": "q4"}, 20, "got head dimension 20"),
    ],
)
def test_what_no_gpu_kernel_reads_is_known_before_the_first_token(
    fields: dict[str, str], dim: int, reason: str
) -> None:
    shape = replace(SMALL, head_dim=dim)
    plan = resolve(CacheConfig.from_dict(fields), shape)
    assert plan.backend is plan.layer(1).backend is Backend.REFERENCE
    assert reason in str(plan.reference_because)
    with pytest.raises(CacheError, match=reason):
        resolve(CacheConfig.from_dict(fields | {"backend": "gpu"}), shape)
    asked = resolve(CacheConfig.from_dict(fields | {"backend": "reference"}), shape)
    assert asked.reference_because is None
    assert asked.prompt_bytes is None


@pytest.mark.usefixtures("gpu")
def test_the_gpu_kernels_run_where_they_can() -> None:
    for fields in ({}, {"keys": "kvarn4", "values": "f16"}, {"hot_dtype": "bf16"}):
        plan = resolve(CacheConfig.from_dict(fields), replace(SMALL, head_dim=128))
        assert plan.layer(1).backend is Backend.GPU
        assert plan.prompt_bytes == 64 * 2**20 + plan.max_bytes // plan.shape.layers
        assert plan.reference_because is None
    # Without room for a cold block its codecs do not matter.
    short = CacheConfig(keys="turbo3p", max_tokens=100)
    assert resolve(short, SMALL).backend is Backend.GPU


def test_the_gpu_backend_needs_a_gpu() -> None:
    if mx.default_device().type == mx.DeviceType.gpu:
        assert Backend.AUTO.resolve() is Backend.GPU
        return
    assert Backend.AUTO.resolve() is Backend.CPU
    with pytest.raises(CacheError, match="needs a Metal or CUDA device"):
        Backend.GPU.resolve()


@pytest.mark.parametrize("block", [1, 7])
def test_a_short_sequence_takes_fewer_bytes(block: int) -> None:
    shape = ModelShape(layers=3, kv_heads=2, head_dim=32, context=500)
    plan = resolve(CacheConfig(max_tokens=97, hot=11, sinks=3, block=block), shape)
    unencoded = plan.sizes.pinned + plan.sizes.ring
    at = [plan.bytes_of(tokens) for tokens in range(120)]
    assert at[0] == at[14] == unencoded * plan.token_bytes
    assert at[15] == at[14 + block] == at[0] + plan.block_bytes
    assert at == sorted(at)
    assert at[plan.max_tokens] == at[-1] == at[0] + plan.sizes.slots * plan.block_bytes


BY_LAYER = ("hkivi5/turbo3u", "q2", "f16/turbo2u")
THREE = replace(SMALL, layers=3)


def test_layers_may_have_codecs_of_their_own() -> None:
    config = CacheConfig(by_layer=BY_LAYER, max_tokens=400, block=32, hot=32)
    plan = resolve(config, THREE)
    alone = [
        resolve(
            replace(config, by_layer=(), keys=pair.split("/")[0], values=pair.split("/")[-1]), THREE
        )
        for pair in BY_LAYER
    ]
    assert plan.layer_block_bytes == tuple(each.layer_block_bytes[0] for each in alone)
    assert plan.block_bytes == sum(plan.layer_block_bytes)
    assert plan.sizes == alone[0].sizes
    assert plan.max_bytes == sum(each.max_bytes for each in alone) / 3
    assert plan.layer_bytes == max(each.layer_bytes for each in alone)
    assert plan.kv == f"{plan.cold_bits:.2f} bits, by layer"
    assert plan.cold_bits == pytest.approx(sum(each.cold_bits for each in alone) / 3)
    codecs = [[codec.name for codec in plan.layer(at).codecs] for at in range(3)]
    assert codecs == [["hkivi5", "turbo3u"], ["q2", "q2"], ["f16", "turbo2u"]]
    assert [cache.plan.keys for cache in from_plan(plan, None)] == ["hkivi5", "q2", "f16"]


@pytest.mark.parametrize("budget", [60_000, 83_111, 140_000])
def test_a_budget_is_used_by_layers_that_differ(budget: int) -> None:
    shape = replace(THREE, windows=(None, 97, None), context=5000)
    config = CacheConfig(budget=budget, by_layer=BY_LAYER, block=16, hot=32)
    plan = resolve(config, shape)
    assert plan.max_bytes <= budget
    assert budget - plan.max_bytes < plan.block_bytes + 3 * plan.token_bytes
    assert plan.max_bytes == sum(plan.bytes_of_kind(sizes) for sizes in plan.kinds)


def test_codecs_by_layer_are_checked() -> None:
    config = CacheConfig(by_layer=BY_LAYER)
    assert CacheConfig.from_dict(config.as_dict()) == config
    with pytest.raises(CacheError, match="got codecs by layer for 3, expected 2"):
        resolve(config, SMALL)
    with pytest.raises(CacheError, match="did you mean hkivi5"):
        CacheConfig(by_layer=("q8", "hkivi6/q8"))
    with pytest.raises(CacheError, match="expected one codec or KEYS/VALUES"):
        CacheConfig(by_layer=("q8/q8/q8",))
    for wrong in ("hkivi5", None, 5, (1, 2, 3), (("q8",),)):
        with pytest.raises(CacheError, match=r"got by_layer=.*, expected a tuple of KEYS/VALUES"):
            CacheConfig.from_dict({"by_layer": wrong})
    with pytest.raises(CacheError, match="got layer 3, expected one of 3 by_layer"):
        TwoTierKVCache.from_config(replace(config, max_tokens=300), layer=3)


@pytest.mark.usefixtures("gpu")
def test_a_layer_that_no_gpu_kernel_reads_is_found() -> None:
    plan = resolve(CacheConfig(by_layer=("q8", "q8", "turbo3p")), replace(THREE, head_dim=64))
    assert "no GPU kernel reads codec turbo3p" in str(plan.reference_because)


def test_a_metric_is_held_by_the_layers_that_it_serves() -> None:
    all_of_them = resolve(CacheConfig(keys="hkivi4"), THREE)
    some = resolve(CacheConfig(by_layer=("q8", "hkivi2/q8", "hkivi5")), THREE)
    none = resolve(CacheConfig(by_layer=("q8", "h4", "f16/hkivi4")), THREE)
    assert some.takes_metric
    assert not none.takes_metric
    assert (some.metric_bytes, none.metric_bytes) == (all_of_them.metric_bytes * 2 / 3, 0)
