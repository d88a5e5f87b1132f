"""The cache and its kernels need no network beside them."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
_ATTENDING = """
import sys
sys.modules["models"] = None
import mlx.core as mx
from kvcache import Backend, CacheConfig, TwoTierKVCache, attend
config = CacheConfig(max_tokens=300, hot=20, block=32, backend=Backend.CPU)
cache = TwoTierKVCache.from_config(config)
k = v = mx.random.normal((1, 2, 70, 32))
out = attend(mx.random.normal((1, 6, 70, 32)), k, v, cache=cache, scale=0.2)
print(mx.isfinite(out).all().item(), cache.stats().cold)
"""


def test_a_cache_attends_where_no_network_is_installed() -> None:
    command = [sys.executable, "-c", _ATTENDING]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "True 32\n", done.stderr
