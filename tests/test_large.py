"""Files with the real dimensions of models that people run, of random weights.

`make test-large`; each test prints what it measured.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from app.engine import Engine, Request
from app.generation import Finished
from kvcache import Backend, CacheConfig, HotDtype
from models import decode, load
from models.gguf.file import GGUFFile
from models.network.config import NetworkConfig
from tests.models.network import numpy_llama

pytestmark = pytest.mark.large

ROOT = Path(__file__).parent.parent
IDS = [1, 300, 31999, 2047, 5]
_MEASURE_LOAD = """
import json, sys, time
from app.rss import peak_rss
from models import decode, load
began = time.perf_counter()
loaded = load(sys.argv[1])
print(json.dumps({"seconds": time.perf_counter() - began, "peak": peak_rss(),
                  "file": loaded.file_bytes, "weights": loaded.weight_bytes}))
"""


LLAMAS = ("tinyllama", "llama-2-7b", "llama-3.1-8b")
MODELS = (*LLAMAS, "qwen3-4b", "gemma-3-4b")


@pytest.fixture(scope="module", params=MODELS)
def large_path(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("large") / f"{request.param}.gguf"
    _python("-m", "tests.make_model", request.param, str(path))
    yield path
    path.unlink()


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


@pytest.fixture(scope="module")
def by_reference(large_path: Path) -> np.ndarray:
    return _logits(large_path, Backend.REFERENCE)


@pytest.mark.parametrize("large_path", LLAMAS, indirect=True)
def test_logits_equal_a_float_forward_over_the_decoded_weights(
    large_path: Path, by_reference: np.ndarray
) -> None:
    with GGUFFile(large_path) as file:
        config = NetworkConfig.from_metadata(file.metadata)
        want = numpy_llama.forward(config, lambda name: _dequantized(file, name), IDS)
    error = np.abs(by_reference - want).max()
    print(f"\n{large_path.stem}: logits up to {np.abs(want).max():.2f}, error {error:.1e}")
    assert error < 1e-4


def test_the_kernels_agree_with_plain_mlx(large_path: Path, by_reference: np.ndarray) -> None:
    error = np.abs(_logits(large_path, Backend.AUTO) - by_reference).max()
    print(
        f"\n{large_path.stem}: logits up to {np.abs(by_reference).max():.2f}, the default "
        f"backend's {error:.1e} from plain MLX's"
    )
    assert error < 2e-3


def test_it_generates(large_path: Path) -> None:
    engine = Engine(load(large_path), CacheConfig(max_tokens=128, hot_dtype=HotDtype.F32))
    *_, last = engine.generate(Request(prompt=IDS, max_tokens=4))
    assert isinstance(last, Finished)
    assert len(last.completion.tokens) == 4
    ids = [*IDS, *last.completion.tokens]
    logits = engine.loaded.model(mx.array([ids]))[0]
    assert mx.argmax(logits[len(IDS) - 1 : -1], axis=-1).tolist() == list(last.completion.tokens)


def _logits(path: Path, backend: Backend) -> np.ndarray:
    """[L, vocabulary]; of the network, nothing stays in memory."""
    model = load(path, backend=backend).model
    return np.array(model(mx.array([IDS]))[0])


def _dequantized(file: GGUFFile, name: str) -> numpy_llama.Array | None:
    return decode(file.tensor(name)) if name in file.tensors else None
