"""mlx-lm's tensor and pipeline parallelism over our caches, by local ranks that talk to each other.

MLX's ring over loopback, as `mlx.launch -n 3` starts it.
"""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from socket import socket
from typing import Any

import mlx.core as mx
import pytest

from kvcache import make_prompt_cache
from tests.kvcache.mlx_lm.rank import HKV, LAYERS, LOSSLESS, make
from tests.patience import patience

ROOT = Path(__file__).parents[3]


def _ranks(model: str, way: str, count: int, folder: Path) -> list[dict[str, Any]]:
    """What each of `count` ranks says."""
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in _free_ports(count)]))
    command = [sys.executable, "-m", "tests.kvcache.mlx_lm.rank", model, way]
    started = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=dict(os.environ) | {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        told = [process.communicate(timeout=patience(120)) for process in started]
    finally:
        # One that hangs waits for another that failed.
        for process in started:
            process.kill()
            process.wait()
    assert [process.returncode for process in started] == [0] * count, told
    return [json.loads(out) for out, _ in told]


def _free_ports(count: int) -> list[int]:
    sockets = [socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


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
