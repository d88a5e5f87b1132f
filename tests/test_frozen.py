"""What users rely on stays as it is: names, saved caches bit for bit, greedy answers."""

import json
import platform
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import load_prompt_cache

import kvcache
import kvcache.mlx_lm
import models
from kvcache import Backend, TwoTierKVCache
from models import load
from tests.frozen import (
    BACKENDS,
    CODECS,
    FLAGS,
    GREEDY,
    HELP,
    flags,
    greedy,
    helps,
    make_caches,
    saved_caches,
)

# The last bit of a product may be another on another processor; codes then differ here and there.
_SAME = 1.0 if platform.machine() == "x86_64" else 0.99
_TOO_CLOSE = 0.05


def test_names_that_scripts_import() -> None:
    assert set(kvcache.__all__) >= {
        *("Backend", "BlockPool", "CacheConfig", "CacheError", "CachePlan", "CacheStats"),
        *("DynamicKVCache", "EmberError", "HeadView", "HotDtype", "ModelShape", "PagedKVCache"),
        *("PoolStats", "Rotation", "RowsKVCache", "TwoTierKVCache", "attend", "codec"),
        *("make_prompt_cache", "resolve", "set_policy", "warm_up"),
    }
    for name in ("make_prompt_cache", "inject", "install", "uninstall", "shape_of", "rotation_of"):
        assert callable(getattr(kvcache.mlx_lm, name))
    assert set(models.__all__) >= {
        *("FetchError", "GGUFError", "LoadedModel", "ModelNotFoundError", "load"),
    }


def test_commands_and_flags_that_are_typed() -> None:
    known = json.loads(FLAGS.read_text(encoding="utf-8"))
    now = flags()
    assert len(known) > 10
    assert {command: set(known[command]) - set(now.get(command, ())) for command in known} == {
        command: set() for command in known
    }


def test_what_commands_say_of_themselves() -> None:
    known, now = json.loads(HELP.read_text(encoding="utf-8")), helps()
    assert len(known) > 10
    for command, lines in known.items():
        assert now.get(command) == lines, command


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.value)
def test_a_seeded_cache_is_saved_bit_for_bit_as_ever(backend: Backend) -> None:
    caches = _saved(backend)
    for pair, saved, made in zip(CODECS, caches, make_caches(backend), strict=True):
        assert _tiers(saved) == _tiers(made), pair
        for old, new in zip(saved.state, made.state, strict=True):
            if isinstance(old, str):
                assert old == new, pair
                continue
            assert _share_equal(old, new) >= _SAME, pair


@pytest.mark.parametrize("written", BACKENDS, ids=lambda backend: backend.value)
def test_a_saved_cache_of_either_backend_is_read(written: Backend) -> None:
    for pair, cache, made in zip(CODECS, _saved(written), make_caches(written), strict=True):
        assert _share_equal(cache.keys(), made.keys()) >= _SAME, pair
        assert _share_equal(cache.values(), made.values()) >= _SAME, pair


@pytest.mark.network
def test_the_default_model_says_what_it_said(smollm2_path: Path) -> None:
    frozen = json.loads(GREEDY.read_text(encoding="utf-8"))
    said = greedy(load(smollm2_path, backend=Backend.CPU), forced=[best for best, _ in frozen])
    decisive = [at for at, (_, lead) in enumerate(frozen) if lead > _TOO_CLOSE]
    assert len(decisive) > len(frozen) * 3 // 4
    assert [said[at][0] for at in decisive] == [frozen[at][0] for at in decisive]


def _saved(backend: Backend) -> list[TwoTierKVCache]:
    caches: list[TwoTierKVCache] = load_prompt_cache(str(saved_caches(backend)))
    return caches


def _tiers(cache: TwoTierKVCache) -> tuple[int, ...]:
    stats = cache.stats()
    return stats.total, stats.sink, stats.hot, stats.cold, stats.evicted, stats.held_bytes


def _share_equal(old: mx.array | None, new: mx.array | None) -> float:
    """The share of elements that are the same, to the bit."""
    if old is None or new is None:
        return float(old is new)
    assert (old.shape, old.dtype) == (new.shape, new.dtype)
    same = np.array(mx.view(old.flatten(), mx.uint8)) == np.array(mx.view(new.flatten(), mx.uint8))
    return float(same.mean())
