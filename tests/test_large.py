"""Files with the real dimensions of TinyLlama and Llama-2-7B, of random weights.

`make test-large`; each test prints what it measured.
"""

import json
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from app.engine import Engine, Request
from app.generation import Finished
from kvcache import Backend, CacheConfig, HotDtype
from models import load
from models.gguf.file import GGUFFile
from models.gguf.repack import Unquantized, repack
from tests.models.network import numpy_llama

pytestmark = pytest.mark.large

ROOT = Path(__file__).parent.parent
IDS = [1, 300, 31999, 2047, 5]
_MEASURE_LOAD = """
import json, sys, time
from app.rss import peak_rss
from models import load
began = time.perf_counter()
loaded = load(sys.argv[1])
print(json.dumps({"seconds": time.perf_counter() - began, "peak": peak_rss(),
                  "file": loaded.file_bytes, "weights": loaded.weight_bytes}))
"""


@pytest.fixture(scope="module", params=["tinyllama", "llama-2-7b"])
def large_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / f"{request.param}.gguf"
    _python("-m", "tests.make_model", request.param, str(path))
    return path


def _python(*arguments: str) -> str:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def test_loading_stays_near_the_files_size(large_path: Path) -> None:
    found = json.loads(_python("-c", _MEASURE_LOAD, str(large_path)))
    ratio = found["peak"] / found["file"]
    print(
        f"\n{large_path.stem}: {found['file'] / 1e6:.0f} MB file, {found['seconds']:.2f} s, "
        f"weights {found['weights'] / 1e6:.0f} MB, peak RSS {ratio:.2f}x the file"
    )
    assert ratio < 1.5


def test_logits_equal_a_float_forward_over_the_repacked_weights(large_path: Path) -> None:
    loaded = load(large_path, backend=Backend.REFERENCE)
    got = np.asarray(loaded.model(mx.array([IDS])))[0]
    by_kernels = np.asarray(load(large_path).model(mx.array([IDS])))[0]
    with GGUFFile(large_path) as file:
        want = numpy_llama.forward(loaded.config, lambda name: _dequantized(file, name), IDS)
    error = np.abs(got - want).max()
    kernels_error = np.abs(by_kernels - want).max()
    print(
        f"\n{large_path.stem}: logits up to {np.abs(want).max():.2f}, error {error:.1e} in plain "
        f"MLX, {kernels_error:.1e} on the default backend"
    )
    assert error < 1e-4
    assert kernels_error < 1e-3


def test_it_generates(large_path: Path) -> None:
    engine = Engine(load(large_path), CacheConfig(max_tokens=64, hot_dtype=HotDtype.F32))
    *_, last = engine.generate(Request(prompt=IDS, max_tokens=4))
    assert isinstance(last, Finished)
    assert len(last.completion.tokens) == 4
    ids = [*IDS, *last.completion.tokens]
    logits = engine.loaded.model(mx.array([ids]))[0]
    assert mx.argmax(logits[len(IDS) - 1 : -1], axis=-1).tolist() == list(last.completion.tokens)


def _dequantized(file: GGUFFile, name: str) -> numpy_llama.Array | None:
    if name not in file.tensors:
        return None
    tensor = repack(file.tensors[name], file.rows(name))
    file.release(name)
    if isinstance(tensor, Unquantized):
        return np.asarray(tensor.array.astype(mx.float32))
    return np.asarray(
        mx.dequantize(
            tensor.weight,
            tensor.scales.astype(mx.float32),
            tensor.biases.astype(mx.float32),
            group_size=tensor.group_size,
            bits=tensor.bits,
        )
    )
