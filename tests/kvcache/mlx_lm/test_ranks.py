"""mlx-lm's tensor and pipeline parallelism over our caches, by local ranks that talk to each other.

MLX's ring over loopback, as `mlx.launch -n 3` starts it.
"""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from kvcache import make_prompt_cache
from tests.kvcache.mlx_lm.rank import HKV, LAYERS, LOSSLESS, make
from tests.local_ranks import ROOT, told_by_ranks


def _ranks(model: str, way: str, count: int, folder: Path) -> list[dict[str, Any]]:
    """What each of `count` ranks says."""
    command = [sys.executable, "-m", "tests.kvcache.mlx_lm.rank", model, way]
    return [json.loads(out) for out in told_by_ranks(command, count, folder)]


@cache
def _alone(model: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.kvcache.mlx_lm.rank", model, "alone"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(("model", "count"), [("llama", 2), ("qwen2", 2), ("qwen2", 3)])
def test_tensor_parallel_ranks_say_what_one_process_says(
    model: str, count: int, tmp_path: Path
) -> None:
    alone, ranks = _alone(model), _ranks(model, "tensor", count, tmp_path)
    for rank in ranks:
        assert rank["ids"] == alone["ids"]
        assert rank["evicted"] == alone["evicted"] > 0
        assert (rank["layers"], rank["kv_heads"]) == (LAYERS, HKV // count)
        # A budget is a rank's own, for the heads that it has.
        assert rank["tokens"] >= count * alone["tokens"]


@pytest.mark.parametrize(("model", "count"), [("qwen2", 2), ("qwen2", 3), ("ministral3", 3)])
def test_pipelines_say_what_one_process_says(model: str, count: int, tmp_path: Path) -> None:
    alone, ranks = _alone(model), _ranks(model, "pipeline", count, tmp_path)
    assert sum(rank["layers"] for rank in ranks) == LAYERS
    for rank in ranks:
        assert rank["ids"] == alone["ids"]
        assert rank["kv_heads"] == HKV
    assert max(rank["evicted"] for rank in ranks) == alone["evicted"] > 0


def test_what_is_tied_to_keys_is_computed_with_the_cache() -> None:
    """As a pipeline's rank ties what it sends to those of its last layer."""
    layer = make_prompt_cache(make("llama"), LOSSLESS)[-1]
    k = mx.random.normal((1, HKV, 5, 16), key=mx.random.key(1))
    layer.append(k, k)
    for look in (lambda: layer.state, layer.pending):
        # No number is the inverse of nothing, which is noticed when it is computed.
        sent = mx.linalg.inv(mx.zeros((2, 2)), stream=mx.cpu)
        layer.keys = mx.depends(layer.keys, sent)
        assert layer.keys().shape == k.shape
        with pytest.raises(RuntimeError):
            mx.eval(look())
        mx.eval(look())
