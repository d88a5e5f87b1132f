"""A tiny random Llama in a GGUF file, for end-to-end tests that need no download."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from app import cli
from app import engine as engine_module
from app.engine import Engine
from kvcache import Backend, CacheConfig, HotDtype
from models import load
from models.gguf.tensor_types import TensorType
from tests.gguf_factory import (
    LlamaShape,
    MetadataItem,
    every_matrix,
    sentencepiece_tokenizer,
    write_llama,
)

TINY = LlamaShape(layers=3, width=96, ffn=160, heads=6, kv_heads=2, vocab=611, context=128)


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file; its answers are noise, but the same noise every time."""
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture(scope="session")
def smollm2_file(smollm2_path: Path) -> Path:
    """The default model's path, and the kernels made, before the home folder is taken away."""
    Backend.AUTO.resolve()
    return smollm2_path


def write_tiny(
    path: Path,
    kind: TensorType = TensorType.Q8_0,
    changes: Mapping[str, MetadataItem] = MappingProxyType({}),
) -> Path:
    """Write it with matrices of a kind and changes to its metadata."""
    write_llama(
        path,
        config=TINY,
        types=every_matrix(kind),
        tokenizer_metadata=sentencepiece_tokenizer(TINY.vocab) | dict(changes),
        seed=5,
    )
    return path


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, str]:
    """Data and configuration folders of their own."""
    return {
        "HOME": str(tmp_path / "home"),
        "XDG_DATA_HOME": str(tmp_path / "data"),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
    }


class Result:
    """What one run of the command line gave."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def error_line(self) -> str:
        """The only line on stderr; nothing may be on stdout."""
        assert self.out == ""
        assert self.err.count("\n") == 1, self.err
        return self.err.strip()


Ember = Callable[..., Result]


@pytest.fixture
def ember(capsys: pytest.CaptureFixture[str]) -> Ember:
    """Runs the command line in this process."""

    def run(*arguments: object) -> Result:
        try:
            code = cli.run([str(argument) for argument in arguments])
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return run


@pytest.fixture(params=[Backend.REFERENCE, Backend.CPU], ids=lambda backend: backend.value)
def engine(
    request: pytest.FixtureRequest, tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Engine:
    """A fresh engine over the tiny model, exact to float32, that prefills 32 tokens a step."""
    backend: Backend = request.param
    monkeypatch.setitem(engine_module.PREFILL_STEP, backend, 32)
    config = CacheConfig(hot_dtype=HotDtype.F32, backend=backend)
    return Engine(load(tiny_path, backend=backend), config)
