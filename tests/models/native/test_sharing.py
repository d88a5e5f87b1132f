"""Two libraries, one pool of threads."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
_COUNTED = """
import numpy as np, psutil
from kvcache.native.library import library
threads = psutil.Process().num_threads
before = threads()
caches = library()
assert threads() == before + 4 == before + caches.threads - 1
from models.gguf.tensor_types import TensorType
from models.native.kernels import kernels
from tests.models.native.random_weight import random_weight
weight, _ = random_weight(640, 64, TensorType.Q4_1)
x = np.random.default_rng(1).normal(size=(70, 64)).astype(np.float32)
during = threads()
products = [kernels().linear(x[:rows], weight) for rows in (1, 7, 70)]
assert threads() == during, (threads(), during)
caches.close()
assert threads() == during - 4
for one in products:
    np.testing.assert_array_equal(kernels().linear(x[: len(one)], weight), one)
print("counted")
"""


def test_a_process_has_one_pool_of_threads() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _COUNTED],
        cwd=ROOT,
        env=os.environ | {"EMBER_THREADS": "5"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "counted\n", done.stderr
