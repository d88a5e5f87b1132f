"""Files with the real dimensions of models that people run, of random weights.

`make test-large`; each test prints what it measured.
"""

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from app.bench.meter import Meter
from app.bench.sections import load as starts
from app.bench.settings import LoadSettings
from app.engine import Engine, Request
from app.events import Finished
from kvcache import Backend, CacheConfig, HotDtype
from models import GGUFFile, decode, load
from models.network.config import NetworkConfig
from tests.models.network import numpy_llama

pytestmark = pytest.mark.large

ROOT = Path(__file__).parent.parent
IDS = [1, 300, 31999, 2047, 5]
LLAMAS = ("tinyllama", "llama-2-7b", "llama-3.1-8b")
OTHERS = ("qwen3-4b", "gemma-3-4b")
# Of the others, whose weights plain MLX holds as float32; one that sees all is among Gemma's.
FEW_LAYERS = 7
# Of activations in 15 bits.
TOLERANCE = 2e-3


@pytest.fixture(scope="module", params=(*LLAMAS, *OTHERS))
def large_path(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("large") / f"{request.param}.gguf"
    _make(request.param, path)
    yield path
    path.unlink()


def _make(name: str, path: Path, *flags: str) -> None:
    command = [sys.executable, "-m", "tests.make_model", name, str(path), *flags]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def test_a_start_and_its_memory(large_path: Path) -> None:
    """Held loosely: a busy machine must not fail this."""
    settings = LoadSettings(model=str(large_path), reps=1)
    with Meter(starts.expected_seconds(settings)) as meter:
        (row,) = starts.run(settings, meter)
    beside = row.peak_rss_bytes - row.file_bytes - row.kv_bytes
    print(
        f"\n{large_path.stem}: {row.file_bytes / 1e6:.0f} MB file, loaded in {row.load_s:.2f} s, "
        f"first token after {row.first_token_s:.2f} s, peak RSS {beside / 1e6:.0f} MB beside file "
        f"and cache; a second process {row.second_bytes / 1e6:.0f} MB"
    )
    assert row.load_s < 5
    assert beside < 0.06 * row.file_bytes + 400e6
    assert row.second_bytes < 0.05 * row.file_bytes + 400e6


@pytest.mark.parametrize("large_path", LLAMAS, indirect=True)
def test_logits_equal_a_float_forward_over_the_decoded_weights(large_path: Path) -> None:
    with GGUFFile(large_path) as file:
        config = NetworkConfig.from_metadata(file.metadata)
        want = numpy_llama.forward(config, partial(_decoded, file), IDS)
    _agree(large_path, want)


@pytest.mark.parametrize("name", OTHERS)
def test_the_kernels_agree_with_plain_mlx(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.gguf"
    _make(name, path, "--layers", str(FEW_LAYERS))
    _agree(path, _logits(path, Backend.REFERENCE))


def test_it_generates(large_path: Path) -> None:
    engine = Engine(load(large_path), CacheConfig(max_tokens=128, hot_dtype=HotDtype.F32))
    *_, last = engine.generate(Request(prompt=IDS, max_tokens=4))
    assert isinstance(last, Finished)
    assert len(last.completion.tokens) == 4
    ids = [*IDS, *last.completion.tokens]
    logits = engine.loaded.model(mx.array([ids]))[0]
    assert mx.argmax(logits[len(IDS) - 1 : -1], axis=-1).tolist() == list(last.completion.tokens)


def _agree(path: Path, want: np.ndarray) -> None:
    """The default backend's logits with these, [L, vocabulary]."""
    error = np.abs(_logits(path, Backend.AUTO) - want).max()
    print(f"\n{path.stem}: logits up to {np.abs(want).max():.2f}, error {error:.1e}")
    assert error < TOLERANCE


def _logits(path: Path, backend: Backend) -> np.ndarray:
    """[L, vocabulary]; of the network, nothing stays in memory."""
    model = load(path, backend=backend).model
    return np.array(model(mx.array([IDS]))[0])


def _decoded(file: GGUFFile, name: str) -> numpy_llama.Array | None:
    return decode(file.tensor(name)) if name in file.tensors else None
