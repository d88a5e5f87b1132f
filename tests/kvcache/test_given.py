"""Every public function and class takes what is plainly meant, and refuses all else by name."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.llama import Model, ModelArgs

import kvcache
import kvcache.mlx_lm
from kvcache import (
    Backend,
    BlockPool,
    CacheConfig,
    CacheError,
    DynamicKVCache,
    HeadView,
    HotDtype,
    KeyMetric,
    Losses,
    ModelShape,
    PagedKVCache,
    Rotation,
    RowsKVCache,
    SharedBudget,
    TwoTierKVCache,
    allocate,
    attend,
    codec,
    load_prompt_cache,
    make_prompt_cache,
    make_rows_cache,
    parse_bytes,
    resolve,
    set_policy,
    sum_layers,
    warm_up,
)

HKV, HQ, DIM, L = 2, 6, 16, 3
NAN, INF = float("nan"), float("inf")
# What is no whole number of at least 1, no number, no array, neither True nor False.
COUNT: list[Any] = [True, 1.5, "3", -1, 2**70, [1], mx.array(1)]
MAYBE_NONE: list[Any] = [*COUNT, None]
NUMBER: list[Any] = [NAN, INF, -INF, "1", None, True, [1.0]]
ARRAY: list[Any] = ["x", None, {}, [[1.0], [1.0, 2.0]], object()]
FLAG: list[Any] = ["yes", 1, 0.0, []]
WORD: list[Any] = ["f8", 5, None, ["f16"], ""]
LIST: list[Any] = ["ab", 5, [-1], [0.5], [True], [None]]
OTHER: list[Any] = ["x", 5, [], object()]
QUERIES: list[Any] = [*ARRAY, np.ones((1, HQ, L, DIM), np.int32)]
MASK: list[Any] = ["full", 5, {}, np.ones((L, 4)), np.ones((L, L), int), np.ones((2, L, L, 1))]


def _array(heads: int, length: int = L, seed: int = 0) -> mx.array:
    size = 1, heads, length, DIM
    return mx.array(np.random.default_rng(seed).normal(size=size).astype(np.float32))


K, V, Q = _array(HKV), _array(HKV, seed=1), _array(HQ, seed=2)
TOKENS = {"k": K, "v": V}
QUERY = {"q": Q, "scale": 0.25, "mask": "causal"}
CONFIG = CacheConfig(max_tokens=64, hot=8, block=8)
SHAPE = ModelShape(layers=2, kv_heads=HKV, head_dim=DIM, context=128)
PLAN = resolve(CONFIG, SHAPE)
LOSSES = Losses(keys={"q8": [0.1, 0.2]}, values={"q8": [0.1, 0.2], "q4": [0.3, 0.3]})
MODEL = Model(
    ModelArgs(
        model_type="llama",
        hidden_size=32,
        num_hidden_layers=2,
        intermediate_size=64,
        num_attention_heads=2,
        rms_norm_eps=1e-5,
        vocab_size=11,
        max_position_embeddings=2**17,
    )
)


class _Network:
    """What a cache asks of one of ember's."""

    shape = SHAPE
    rotations = (None, None)


def _two_tier(filled: bool = True) -> TwoTierKVCache:
    cache = TwoTierKVCache.from_config(CONFIG)
    if filled:
        cache.append(K, V)
    return cache


def _dynamic(filled: bool = True) -> DynamicKVCache:
    cache = DynamicKVCache(64)
    if filled:
        cache.append(K, V)
    return cache


def _pool() -> BlockPool:
    return BlockPool(7, kv_heads=HKV, head_dim=DIM, page_tokens=4)


def _paged(filled: bool = True) -> PagedKVCache:
    cache = PagedKVCache(_pool())
    if filled:
        cache.append(K, V)
    return cache


def _rows() -> RowsKVCache:
    return RowsKVCache([_two_tier(filled=False)], [0])


def _metric() -> KeyMetric:
    return KeyMetric.of([mx.broadcast_to(mx.eye(DIM), (HKV, DIM, DIM))] * 2)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A callable with arguments that it takes, and what it must refuse for each of them.

    words: of an argument, what the message says in place of the argument's name.
    """

    call: Callable[..., object]
    good: dict[str, Any] = field(default_factory=dict)
    wrong: dict[str, list[Any]] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)


def _on(make: Callable[..., Any], method: str) -> Callable[..., object]:
    """A method of a new object."""
    return lambda **given: getattr(make(), method)(**given)


def _cache_cases(name: str, make: Callable[..., Any]) -> dict[str, Case]:
    """What all caches of a layer have."""
    tokens = {"k": ARRAY, "v": ARRAY}
    query = {"q": QUERIES, "scale": NUMBER, "mask": MASK}
    said = {"q": "quer|q=", "mask": "mask"}
    everything = {**TOKENS, **QUERY}
    return {
        f"{name}.append": Case(call=_on(make, "append"), good=TOKENS, wrong=tokens),
        f"{name}.update_and_fetch": Case(
            call=_on(make, "update_and_fetch"), good=TOKENS, wrong=tokens
        ),
        f"{name}.attend_held": Case(
            call=_on(make, "attend_held"), good=QUERY, wrong=query, words=said
        ),
        f"{name}.attend": Case(
            call=lambda **given: make(False).attend(**given),
            good=everything,
            wrong={**query, **tokens},
            words=said,
        ),
        f"{name}.trim": Case(call=_on(make, "trim"), good={"n": 1}, wrong={"n": _but(-1, 2**70)}),
        f"{name}.make_mask": Case(
            call=_on(make, "make_mask"),
            good={"length": 2},
            wrong={"length": [0, *_but(2**70)], "window_size": [0, *_but(2**70)]},
        ),
    }


def _but(*fine: object) -> list[Any]:
    return [each for each in COUNT if type(each) is not int or each not in fine]


CASES: dict[str, Case] = {
    "CacheConfig": Case(
        call=CacheConfig,
        wrong={
            "max_tokens": COUNT,
            "budget": [True, 1.5, -1, [1], "64 parsecs", "", 0],
            "hot": MAYBE_NONE,
            "sinks": MAYBE_NONE,
            "keep": MAYBE_NONE,
            "block": [*MAYBE_NONE, 0],
            "keys": [5, None, ["q8"], "q8/q8/q8"],
            "values": [5, None, ["q8"]],
            "by_layer": ["q8", None, 5, (1, 2)],
            "hot_dtype": WORD,
            "backend": WORD,
            "beyond_context": [*FLAG, None],
            "turn_sinks": [*FLAG, None],
            "temperature": [*NUMBER, 0, -1.0],
            "check_finite": FLAG,
        },
        words={"budget": "budget|number of bytes", "keys": "keys|one codec"},
    ),
    "CacheConfig.for_budget": Case(
        call=CacheConfig.for_budget,
        good={"budget": "64MiB"},
        wrong={"budget": [True, 1.5, -1, None, "64 parsecs"], "sizes": [5]},
        words={"budget": "budget|number of bytes"},
    ),
    "CacheConfig.from_dict": Case(
        call=CacheConfig.from_dict,
        good={"fields": {}},
        wrong={"fields": [5, None, "x", {"size": 5}, {"hot": "x"}, {"backend": 5}]},
        words={"fields": "configuration|hot|backend"},
    ),
    "CacheConfig.codecs_of": Case(
        call=CacheConfig(by_layer=("q8",)).codecs_of,
        good={"layer": 0},
        wrong={"layer": [*_but(), 1]},
    ),
    "ModelShape": Case(
        call=ModelShape,
        good={"layers": 2, "kv_heads": 2, "head_dim": 16, "context": 128},
        wrong={
            **{
                key: [*_but(2**70), 0, None]
                for key in ("layers", "kv_heads", "head_dim", "context")
            },
            "windows": ["ab", 5, None, (0, 1), (1.5, None), (8, 8, 8)],
        },
    ),
    "resolve": Case(
        call=resolve,
        good={"config": CONFIG, "shape": SHAPE},
        wrong={"config": [*OTHER, None, "64MiB"], "shape": [*OTHER, None, (2, 2, 16, 128)]},
    ),
    "CachePlan.bytes_of": Case(
        call=PLAN.bytes_of, good={"tokens": 5}, wrong={"tokens": _but(2**70)}
    ),
    "CachePlan.bytes_of_kind": Case(
        call=PLAN.bytes_of_kind, good={"sizes": PLAN.sizes}, wrong={"sizes": OTHER}
    ),
    "CachePlan.layer": Case(call=PLAN.layer, good={"index": 1}, wrong={"index": [*COUNT, 2]}),
    "TwoTierKVCache": Case(
        call=TwoTierKVCache,
        good={"plan": PLAN.layer(0)},
        wrong={"plan": [*OTHER, CONFIG, PLAN], "rotation": OTHER, "metric": OTHER},
    ),
    "TwoTierKVCache.from_config": Case(
        call=TwoTierKVCache.from_config,
        good={"config": CONFIG},
        wrong={
            "config": [*OTHER, None, CacheConfig()],
            "layer": _but(2**70),
            "rotation": OTHER,
        },
        words={"config": "config|max_tokens"},
    ),
    **_cache_cases("TwoTierKVCache", _two_tier),
    "TwoTierKVCache.scores": Case(
        call=_on(_two_tier, "scores"),
        good={"q": Q},
        wrong={"q": QUERIES, "scale": NUMBER},
        words={"q": "quer|q="},
    ),
    "TwoTierKVCache.rewind": Case(
        call=_on(_two_tier, "rewind"), good={"tokens": 1}, wrong={"tokens": _but(2**70)}
    ),
    "TwoTierKVCache.set_policy": Case(
        call=_on(_two_tier, "set_policy"),
        good={"plan": PLAN.layer(1)},
        wrong={"plan": [*OTHER, PLAN]},
    ),
    **_cache_cases("DynamicKVCache", _dynamic),
    "DynamicKVCache": Case(
        call=DynamicKVCache,
        wrong={
            "max_seq_len": [*_but(2**70), 0],
            "capacity": [*COUNT, 0, None],
            "dtype": WORD,
            "backend": WORD,
            "left_padding": [*LIST, []],
            "validate": FLAG,
        },
    ),
    "DynamicKVCache.append_joined": Case(
        call=_on(_dynamic, "append_joined"),
        good={"kv": mx.stack([K, V])},
        wrong={"kv": [*ARRAY, K]},
        words={"kv": "kv|keys, then values"},
    ),
    "DynamicKVCache.reserve": Case(
        call=lambda **given: _dynamic(False).reserve(**given),
        good={"tokens": 3, "shape": (1, HKV, DIM)},
        wrong={"tokens": MAYBE_NONE, "shape": [*LIST, (1, 2), (1, 0, 16)]},
        words={"tokens": "tokens"},
    ),
    "DynamicKVCache.advance": Case(
        call=_on(_dynamic, "advance"),
        good={"tokens": 3},
        wrong={"tokens": MAYBE_NONE, "written": ARRAY[:1]},
    ),
    "DynamicKVCache.filter": Case(
        call=_on(_dynamic, "filter"), good={"rows": [0]}, wrong={"rows": [*LIST, [], [1]]}
    ),
    **_cache_cases("PagedKVCache", _paged),
    "PagedKVCache": Case(
        call=PagedKVCache,
        good={"pool": _pool()},
        wrong={"pool": [*OTHER, None], "max_pages": [*_but(2**70), 0], "validate": FLAG},
    ),
    "PagedKVCache.fork": Case(
        call=_on(_paged, "fork"), good={"rows": [0]}, wrong={"rows": [*LIST, [], [1]]}
    ),
    "PagedKVCache.filter": Case(
        call=_on(_paged, "filter"), good={"rows": [0]}, wrong={"rows": [*LIST, [], [1]]}
    ),
    "BlockPool": Case(
        call=BlockPool,
        good={"pages": 7, "kv_heads": HKV, "head_dim": DIM},
        wrong={
            **{key: [*COUNT, 0, None] for key in ("pages", "kv_heads", "head_dim", "page_tokens")},
            "dtype": WORD,
            "backend": WORD,
        },
        words={"pages": "pages|page_tokens", "page_tokens": "page"},
    ),
    "BlockPool.for_budget": Case(
        call=BlockPool.for_budget,
        good={"budget": "1MiB", "kv_heads": HKV, "head_dim": DIM},
        wrong={
            "budget": [True, 1.5, -1, 0, None, "1 parsec", "3", 9],
            **{key: [*COUNT, 0, None] for key in ("kv_heads", "head_dim", "page_tokens")},
            "dtype": WORD,
            "backend": WORD,
        },
        words={
            "budget": "budget|number of bytes",
            **dict.fromkeys(("kv_heads", "head_dim", "page_tokens"), "kv_heads|head_dim|page"),
        },
    ),
    **{
        f"BlockPool.{name}": Case(
            call=_on(_pool, name), good={argument: 3}, wrong={argument: [*COUNT, 8]}
        )
        for name, argument in {
            "prewarm": "pages",
            "references": "page",
            "take": "after",
        }.items()
    },
    **{
        f"BlockPool.{name}": Case(
            call=_on(_pool, name),
            good={"pages": []},
            wrong={"pages": [*LIST, [7], [3]]},
            words={"pages": "page"},
        )
        for name in ("share", "give_back", "evict")
    },
    "RowsKVCache": Case(
        call=RowsKVCache,
        good={"caches": [_two_tier(False)], "left_padding": [0]},
        wrong={"caches": [*OTHER, None, [None]], "left_padding": [*LIST, [], [0, 0]]},
        words={"caches": "caches|rows", "left_padding": "padding"},
    ),
    "RowsKVCache.attend": Case(
        call=_on(_rows, "attend"),
        good={**TOKENS, **QUERY},
        wrong={
            "q": QUERIES,
            "k": ARRAY,
            "v": ARRAY,
            "scale": NUMBER,
            "mask": ["full", 5, {}, np.ones((L, L))],
        },
        words={"q": "quer|q="},
    ),
    "RowsKVCache.filter": Case(
        call=_on(_rows, "filter"), good={"rows": [0]}, wrong={"rows": [*LIST, [], [1]]}
    ),
    "RowsKVCache.of": Case(
        call=RowsKVCache.of,
        good={"caches": [_two_tier(False)]},
        wrong={"caches": [[], [None], ["x"]]},
        words={"caches": "caches|rows"},
    ),
    "RowsKVCache.extend": Case(
        call=_on(_rows, "extend"), good={"other": _rows()}, wrong={"other": [*OTHER, None]}
    ),
    "RowsKVCache.prepare": Case(
        call=_on(_rows, "prepare"),
        good={"left_padding": [0], "lengths": [3]},
        wrong={"left_padding": [5, "x", [-1], [0, 0]], "lengths": [5, "x", [-1], []]},
    ),
    "RowsKVCache.extract": Case(
        call=_on(_rows, "extract"), good={"row": 0}, wrong={"row": [*COUNT, 1]}
    ),
    "SharedBudget": Case(
        call=SharedBudget,
        good={"budget": "1MiB"},
        wrong={"budget": [True, 1.5, -1, 0, None, "1 parsec", [1]]},
        words={"budget": "budget|number of bytes"},
    ),
    "SharedBudget.make_prompt_cache": Case(
        call=SharedBudget("1MiB").make_prompt_cache,
        good={"model": MODEL},
        wrong={"model": [*OTHER, None], "config": [*OTHER, CacheConfig(budget=9)], "metric": OTHER},
    ),
    "SharedBudget.release": Case(
        call=SharedBudget("1MiB").release, good={"caches": []}, wrong={"caches": [5, None, [None]]}
    ),
    "make_rows_cache": Case(
        call=make_rows_cache,
        good={"model": _Network(), "left_padding": [0, 2]},
        wrong={
            "model": [*OTHER, None, MODEL],
            "config": OTHER,
            "left_padding": [*LIST, [], None],
            "metric": OTHER,
        },
    ),
    "parse_bytes": Case(
        call=parse_bytes,
        good={"text": "1.5 GiB"},
        wrong={"text": [5, None, "", "x", "-1", "0", "1e400", ["1"]]},
        words={"text": "text|size"},
    ),
    "load_prompt_cache": Case(
        call=load_prompt_cache,
        wrong={"path": [5, None, "nowhere"]},
        words={"path": "saved cache"},
    ),
    "sum_layers": Case(
        call=sum_layers,
        good={"layers": [_two_tier().stats()]},
        wrong={"layers": [[], 5, None, [_two_tier()], "ab"]},
        words={"layers": "layer"},
    ),
    "allocate": Case(
        call=allocate,
        good={"losses": LOSSES, "bits": {"q8": 8.5, "q4": 4.5}, "mean": 7.0},
        wrong={
            "losses": [*OTHER, Losses(keys={}, values={}), Losses(keys={"q8": [1.0]}, values={})],
            "bits": [*OTHER, None, {"q8": 8.5}],
            "mean": [*NUMBER, 0, -1.0, 1.0],
        },
        words={"mean": "mean|bits"},
    ),
    "HeadView": Case(
        call=HeadView,
        good={"cache": _two_tier(), "head": 1},
        wrong={"cache": [*OTHER, None], "head": [*COUNT, 2, None]},
    ),
    "HeadView.attend_held": Case(
        call=HeadView(cache=_two_tier(), head=1).attend_held,
        good={**QUERY, "q": Q[:, :3]},
        wrong={"q": QUERIES, "scale": NUMBER, "mask": MASK},
        words={"q": "quer|q="},
    ),
    "HeadView.scores": Case(
        call=HeadView(cache=_two_tier(), head=1).scores,
        good={"q": Q[:, :3]},
        wrong={"q": QUERIES, "scale": NUMBER},
        words={"q": "quer|q="},
    ),
    "KeyMetric.of": Case(
        call=KeyMetric.of,
        good={"moments": [mx.zeros((HKV, DIM, DIM))]},
        wrong={"moments": [*OTHER, None, mx.zeros((2, 3, 3)), [K], ["x"]]},
    ),
    "KeyMetric.load": Case(
        call=KeyMetric.load,
        good={},
        wrong={"path": [5, None, "nowhere"]},
        words={"path": "key metric"},
    ),
    "KeyMetric.check": Case(
        call=_metric().check,
        good={"layers": 2, "kv_heads": HKV, "dim": DIM},
        wrong={"layers": [3, "x"], "kv_heads": [3], "dim": [8, None]},
        words=dict.fromkeys(("layers", "kv_heads", "dim"), "another model"),
    ),
    "Rotation": Case(
        call=Rotation,
        good={"periods": [1.0, 10.0], "traditional": True},
        wrong={"periods": ["x", None, [[1.0]], [0.0], [NAN], 5.0], "traditional": [*FLAG, None]},
    ),
    "attend": Case(
        call=attend,
        good={**TOKENS, **QUERY, "cache": None},
        wrong={
            "q": QUERIES,
            "k": ARRAY,
            "v": ARRAY,
            "cache": OTHER,
            "scale": NUMBER,
            "mask": MASK,
            "window": [*_but(2**70), 0],
        },
        words={"q": "quer|q="},
    ),
    "codec": Case(
        call=codec,
        good={"name": "q8"},
        wrong={"name": [5, None, ["q8"], "q9", ""], "seed": [*_but(2**70), None]},
        words={"name": "codec|name"},
    ),
    "make_prompt_cache": Case(
        call=make_prompt_cache,
        good={"model": MODEL},
        wrong={"model": [*OTHER, None], "config": OTHER, "metric": OTHER},
    ),
    "set_policy": Case(
        call=set_policy,
        good={"caches": [_two_tier(), _two_tier()], "plan": PLAN},
        wrong={"caches": [*OTHER, None, [_two_tier()], [_dynamic()] * 2], "plan": [*OTHER, None]},
    ),
    "warm_up": Case(
        call=warm_up,
        good={"plan": PLAN, "group": 2, "dtype": mx.float16},
        wrong={
            "plan": OTHER,
            "group": [*_but(2**70), 0],
            "dtype": ["f16", 5, None],
            "rotation": [5, "x", [None]],
            "metric": OTHER,
        },
        words={"rotation": "rope|rotation"},
    ),
    "mlx_lm.make_prompt_cache": Case(
        call=kvcache.mlx_lm.make_prompt_cache,
        good={"model": MODEL},
        wrong={"model": [*OTHER, None], "config": OTHER, "metric": OTHER},
    ),
    "mlx_lm.inject": Case(
        call=kvcache.mlx_lm.inject,
        good={"model": MODEL},
        wrong={"model": [*OTHER, None], "config": OTHER},
    ),
    "mlx_lm.install": Case(call=kvcache.mlx_lm.install, wrong={"config": OTHER, "metric": OTHER}),
    "mlx_lm.load_prompt_cache": Case(
        call=kvcache.mlx_lm.load_prompt_cache,
        wrong={"path": [5, None, "nowhere"]},
        words={"path": "saved cache"},
    ),
    "mlx_lm.describe": Case(
        call=kvcache.mlx_lm.describe, good={"caches": [_two_tier()]}, wrong={"caches": [5, None]}
    ),
    "mlx_lm.check_drafts": Case(
        call=kvcache.mlx_lm.check_drafts,
        good={"caches": [], "tokens": 2},
        wrong={"tokens": [*_but(2**70), None]},
    ),
    **{
        f"mlx_lm.{name}": Case(
            call=getattr(kvcache.mlx_lm, name),
            good={"model": MODEL},
            wrong={"model": [*OTHER, None]},
        )
        for name in ("shape_of", "rotation_of", "rotations_of")
    },
}
# What makes no promise: figures that the library alone makes, errors, what a kernel or a saved
# cache is handed by the modules that know it (each has tests of its own).
UNASKED = {
    *("CacheError", "EmberError", "CacheStats", "PoolStats", "CachePlan", "KeyMetric"),
    *("Backend", "HotDtype", "Codec", "Encoded", "LayerPlan", "Losses", "TierSizes"),
    *(f"Codec.{name}" for name in ("basis", "decode", "decode_rotated", "encode", "rotate")),
    *("Codec.bits_per_element", "Codec.shapes", "Codec.unrotate"),
    *(f"LayerPlan.{name}" for name in ("alone", "block_bytes", "block_shares", "codecs_in", "of")),
    *("LayerPlan.token_bytes", "TierSizes.of_window", "TierSizes.within"),
    *("TwoTierKVCache.merge", "TwoTierKVCache.to_quantized"),
    *("BlockPool.own_copy", "BlockPool.exhausted", "CachePlan.on_reference"),
    *("DynamicKVCache.from_state", "PagedKVCache.from_state", "TwoTierKVCache.from_state"),
    *("RowsKVCache.commit", "RowsKVCache.lend", "RowsKVCache.steps"),
    *("RowsKVCache.passed", "RowsKVCache.spans"),
    *(
        f"TwoTierKVCache.{name}"
        for name in (
            "draw_on",
            "attend_checked",
            "checked",
            "commit",
            "hold",
            "lend",
        )
    ),
    *(f"TwoTierKVCache.{name}" for name in ("part_specs", "parts", "put_parts", "steps")),
    *("KeyMetric.save", "Rotation.table", "mlx_lm.uninstall"),
}


def _public(home: ModuleType) -> Iterator[str]:
    """Functions, classes and their methods that take an argument."""
    prefix = "mlx_lm." if home is kvcache.mlx_lm else ""
    for name in home.__all__:
        found = getattr(home, name)
        if inspect.isfunction(found) or inspect.isclass(found):
            yield prefix + name
        if inspect.isclass(found):
            for method, made in inspect.getmembers(found):
                called = getattr(made, "__func__", made)
                ours = inspect.isfunction(called) and called.__module__.startswith("kvcache")
                if (
                    ours
                    and not method.startswith("_")
                    and len(inspect.signature(called).parameters) > 1
                ):
                    yield f"{prefix}{name}.{method}"


def _rows_of_cases() -> Iterator[Any]:
    for name, case in CASES.items():
        for argument, values in case.wrong.items():
            for at, value in enumerate(values):
                yield pytest.param(case, argument, value, id=f"{name}-{argument}-{at}")


@pytest.fixture(autouse=True)
def _uninstalled() -> Iterator[None]:
    yield
    kvcache.mlx_lm.uninstall()
    MODEL.__dict__.pop("make_cache", None)


@pytest.mark.parametrize(("case", "argument", "value"), [*_rows_of_cases()])
def test_what_cannot_be_is_refused_by_name(case: Case, argument: str, value: Any) -> None:
    with pytest.raises(CacheError, match=case.words.get(argument, rf"\b{argument}\b")) as told:
        case.call(**{**case.good, argument: value})
    assert "--" not in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", CASES)
def test_what_the_table_calls_right_is_taken(name: str) -> None:
    if CASES[name].good:
        CASES[name].call(**CASES[name].good)


def test_the_table_has_everything_public() -> None:
    public = {*_public(kvcache), *_public(kvcache.mlx_lm)}
    assert public - CASES.keys() - UNASKED == set()
    assert UNASKED - public - {"mlx_lm.uninstall"} == set()


def test_words_mean_what_they_say() -> None:
    said = CacheConfig(
        budget="64MiB",
        hot=np.int64(32),
        hot_dtype="F32",
        backend="reference",
        keys="kvarn4/q3",
        by_layer=["q8/q4", "q8"],
        temperature=np.float32(0.5),
    )
    assert said == CacheConfig(
        budget=2**26,
        hot=32,
        hot_dtype=HotDtype.F32,
        backend=Backend.REFERENCE,
        keys="kvarn4",
        values="q3",
        by_layer=("q8/q4", "q8"),
        temperature=0.5,
    )
    assert {type(getattr(said, name)) for name in ("budget", "hot")} == {int}
    assert CacheConfig.from_dict(said.as_dict()) == said
    assert CacheConfig(hot_dtype=mx.bfloat16).hot_dtype is HotDtype.BF16
    cache = DynamicKVCache(dtype="bf16", backend="reference")
    assert (cache.dtype, cache.backend) == (HotDtype.BF16, Backend.REFERENCE)
    pool = BlockPool(3, kv_heads=1, head_dim=8, dtype="f32", backend="reference")
    assert (pool.dtype, pool.backend) == (HotDtype.F32, Backend.REFERENCE)
    one = BlockPool.for_budget(2**20, kv_heads=1, head_dim=8, dtype="f32")
    assert one.page_bytes == 2 * 32 * 8 * 4


def test_two_codecs_for_keys_and_one_more_for_values_is_one_too_many() -> None:
    with pytest.raises(CacheError, match="got keys='q8/q4', expected one codec where values='q6'"):
        CacheConfig(keys="q8/q4", values="q6")


@pytest.mark.parametrize("make", [_two_tier, _dynamic, _paged])
@pytest.mark.parametrize("kind", [np.array, lambda x: np.array(x).tolist()])
def test_arrays_of_numpy_and_lists_are_arrays(
    make: Callable[[bool], Any], kind: Callable[[mx.array], Any]
) -> None:
    causal = np.tri(L, dtype=bool)
    right = make(False).attend(Q, K, V, scale=0.25, mask=mx.array(causal))
    got = make(False).attend(kind(Q), kind(K), kind(V), scale=np.float64(0.25), mask=kind(causal))
    assert got.dtype == right.dtype == mx.float32
    np.testing.assert_array_equal(np.array(got), np.array(right))


def test_attention_without_a_cache_takes_them_too() -> None:
    right = attend(Q, K, V, cache=None, scale=0.25)
    got = attend(*map(np.array, (Q, K, V)), cache=None, scale=0.25)
    np.testing.assert_array_equal(np.array(got), np.array(right))


def _of_backends() -> dict[str, Callable[[str], Any]]:
    return {
        "two tiers": lambda backend: TwoTierKVCache.from_config(
            CacheConfig(max_tokens=64, hot=8, block=8, backend=backend)
        ),
        "dynamic": lambda backend: DynamicKVCache(backend=backend, validate=True),
        "paged": lambda backend: PagedKVCache(
            BlockPool(9, kv_heads=HKV, head_dim=DIM, page_tokens=4, backend=backend), validate=True
        ),
    }


@pytest.mark.parametrize("kind", _of_backends())
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_queries_that_are_no_numbers_change_nothing(
    kind: str, backend: str, dtype: mx.Dtype
) -> None:
    cache = _of_backends()[kind](backend)
    cache.append(K, V)
    for number in (NAN, -INF):
        bad = mx.array(np.where(np.arange(Q.size).reshape(Q.shape) == 7, number, np.array(Q)))
        for call in (cache.attend_held, lambda q, **how: cache.attend(q, K, V, **how)):
            with pytest.raises(CacheError, match="got queries that are NaN or infinite"):
                call(bad.astype(dtype), scale=0.25)
    assert cache.offset == L
    large = mx.full(Q.shape, 3e19 if dtype != mx.float16 else 6e4).astype(dtype)
    cache.attend_held(large, scale=0.25)


@pytest.mark.parametrize("make", [_two_tier, _dynamic, _paged])
@pytest.mark.parametrize(
    "wrong",
    [{"q": Q[:, :5]}, {"q": mx.concatenate([Q, Q, Q], axis=2)}, {"scale": NAN}, {"mask": Q[0, 0]}],
)
def test_a_refused_call_leaves_the_cache_as_it_was(
    make: Callable[[], Any], wrong: dict[str, Any]
) -> None:
    cache = make()
    before = cache.stats()
    with pytest.raises(CacheError):
        cache.attend(**{**TOKENS, **QUERY, **wrong})
    assert cache.stats() == before


def test_a_head_dimension_that_a_codec_does_not_take_is_refused_at_once() -> None:
    for dim, keys in ((22, "hkivi5"), (9, "turbo3u")):
        odd = mx.zeros((1, HKV, 1, dim))
        cache = TwoTierKVCache.from_config(CacheConfig(max_tokens=64, hot=8, block=8, keys=keys))
        with pytest.raises(CacheError, match=f"got head dimension {dim}"):
            cache.append(odd, odd)
        assert cache.stats().allocated_bytes == 0
