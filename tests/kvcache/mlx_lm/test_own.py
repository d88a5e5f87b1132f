"""mlx-lm's own prompt-cache tests, unchanged, with ember's caches where they name mlx-lm's.

They come from the source distribution of the mlx-lm that is installed, fetched
once: its wheel leaves them out. Their model, a download of 400 MB, is stood in for
by a random one.
"""

import subprocess
import sys
import tarfile
import unittest
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx
import pytest
from platformdirs import user_cache_path

from kvcache import (
    Backend,
    BlockPool,
    CacheConfig,
    DynamicKVCache,
    HotDtype,
    PagedKVCache,
    TwoTierKVCache,
    mlx_lm,
)
from tests.kvcache.tiny_llama import DIM, HKV, LAYERS, VOCABULARY, make_model

pytestmark = pytest.mark.network

LOSSLESS = CacheConfig(
    keys="f16", values="f16", hot_dtype=HotDtype.F32, max_tokens=600, backend=Backend.REFERENCE
)

NOT_APPLICABLE = {
    "test_arrays_cache_advance": "ArraysCache alone",
    "test_arrays_cache_extend_with_empty": "ArraysCache alone",
    "test_batch_kv_cache": "batch caches alone",
    "test_batch_kv_cache_offset_not_mutated_in_place": "batch caches alone",
    "test_batch_rotating_kv_cache": "batch caches alone",
    "test_cache_copying": "reads KVCache's attribute keys, which is a method here",
    "test_cache_list": "reads what only mlx-lm's own batch caches have",
    "test_cache_to_quantized": "turns a KVCache into mlx-lm's QuantizedKVCache",
    "test_extend_with_empty_and_nonempty_batch_caches": "batch caches alone",
    "test_extend_with_empty_batch_cache_preserves_dtype": "batch caches alone",
    "test_merge_with_empty_caches": "reads what only mlx-lm's own batch caches have",
    "test_rotating_cache_mask": "the order of tokens in RotatingKVCache's ring",
    "test_save_load_arrays_cache": "ArraysCache alone",
    "test_save_load_batch_caches": "batch caches alone",
    "test_save_load_quantized_cache": "QuantizedKVCache alone",
    "test_save_load_rotating_cache": "reads RotatingKVCache's attributes keep, max_size and step",
}
# Reads state[0] and state[1] as keys and values.
PLAIN_ONLY = ("test_save_load",)
# Caches made without saying their shape, which a pool of pages must know.
SHAPELESS = (
    "test_make_mask_with_cache",
    "test_rotating_cache_updates",
    "test_save_load_cache_list",
    "test_save_load_mixed_cache",
    "test_trim_cache",
    "test_window_mask_with_full_kv_cache",
)
GENERATING = ("test_cache_with_generate", "test_trim_cache_with_generate")


def _two_tier() -> TwoTierKVCache:
    return TwoTierKVCache.from_config(LOSSLESS)


def _rotating(max_size: int) -> TwoTierKVCache:
    """Lets single tokens go; mlx-lm counts the token that is about to come as one of max_size."""
    fields = {"max_tokens": max_size - 1, "sinks": 0, "hot": max_size - 1, "block": 1}
    return TwoTierKVCache.from_config(CacheConfig.from_dict(LOSSLESS.as_dict() | fields))


def _dynamic() -> DynamicKVCache:
    return DynamicKVCache(600, dtype=HotDtype.F32, backend=Backend.REFERENCE)


def _two_tiers_of(model: Any) -> list[Any]:
    return list(mlx_lm.make_prompt_cache(model, LOSSLESS))


def _dynamic_of(_model: Any) -> list[Any]:
    return [_dynamic() for _ in range(LAYERS)]


def _paged_of(_model: Any) -> list[Any]:
    sizes = {"kv_heads": HKV, "head_dim": DIM, "page_tokens": 16}
    kind = {"dtype": HotDtype.F32, "backend": Backend.REFERENCE}
    return [PagedKVCache(BlockPool(40, **sizes, **kind)) for _ in range(LAYERS)]


class _Tokenizer:
    """Characters as ids."""

    def encode(self, text: str, *, return_tensors: str) -> mx.array:
        assert return_tensors == "mlx"
        return mx.array([[ord(character) % VOCABULARY for character in text]])


@pytest.fixture(scope="session")
def source() -> Path:
    """mlx-lm's file of prompt-cache tests, kept in the user's cache folder."""
    name = f"mlx_lm-{version('mlx-lm')}"
    folder = user_cache_path("ember") / "mlx-lm-tests"
    archive, inside = folder / f"{name}.tar.gz", f"{name}/tests/test_prompt_cache.py"
    if not archive.is_file():
        wanted = ["--no-deps", "--no-binary", "mlx-lm", f"mlx-lm=={version('mlx-lm')}"]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder)]
        subprocess.run([*command, *wanted], check=True)
    with tarfile.open(archive) as opened:
        opened.extract(inside, folder, filter="data")
    return folder / inside


@pytest.fixture
def theirs(source: Path) -> ModuleType:
    """A fresh module of mlx-lm's tests, with a random model."""
    module = ModuleType("mlx_lm_test_prompt_cache")
    exec(compile(source.read_text(encoding="utf-8"), source, "exec"), vars(module))
    vars(module)["load"] = lambda _path: (make_model(), _Tokenizer())
    return module


def _run(module: ModuleType, name: str) -> None:
    """One of their tests, which must pass without being skipped."""
    case = module.TestPromptCache
    result = unittest.TestResult()
    unittest.TestSuite([case(name)]).run(result)
    for _, report in result.errors + result.failures:
        pytest.fail(report)
    assert (result.testsRun, result.skipped) == (1, [])


def test_each_of_their_tests_is_run_or_named(theirs: ModuleType) -> None:
    names = set(unittest.TestLoader().getTestCaseNames(theirs.TestPromptCache))
    assert names == {*NOT_APPLICABLE, *PLAIN_ONLY, *SHAPELESS, *GENERATING}


@pytest.mark.parametrize("name", SHAPELESS)
def test_the_two_tier_cache_passes(theirs: ModuleType, name: str) -> None:
    vars(theirs).update(KVCache=_two_tier, RotatingKVCache=_rotating)
    _run(theirs, name)


@pytest.mark.parametrize("name", [*PLAIN_ONLY, *SHAPELESS])
def test_the_dynamic_cache_passes(theirs: ModuleType, name: str) -> None:
    vars(theirs)["KVCache"] = _dynamic
    _run(theirs, name)


@pytest.mark.parametrize("make", [_two_tiers_of, _dynamic_of, _paged_of])
@pytest.mark.parametrize("name", GENERATING)
def test_generation_passes(theirs: ModuleType, name: str, make: Callable[[Any], list[Any]]) -> None:
    vars(theirs)["make_prompt_cache"] = make
    _run(theirs, name)
