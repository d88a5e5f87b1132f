"""A server over a tiny model, and OpenAI's own client for it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import pytest
from openai import OpenAI

from app.serve.generator import Generator
from app.serve.model_provider import ModelProvider
from app.serve.server_settings import ServerSettings
from app.serve.serving import HTTPServer
from kvcache import Backend, CacheConfig, HotDtype
from models.gguf.tensor_types import TensorType
from tests.gguf_factory import LlamaShape, every_matrix, sentencepiece_tokenizer, write_llama
from tests.patience import patience

SHAPE = LlamaShape(layers=2, width=64, ffn=96, heads=4, kv_heads=2, vocab=611, context=4096)
# Nothing is lost in it, so that an answer is the same however its prompt was read.
EXACT = CacheConfig(
    backend=Backend.CPU, keys="f16", values="f16", hot_dtype=HotDtype.F32, max_tokens=4096
)


@dataclass(kw_only=True)
class Served:
    """A running server. lines: what it has said of requests."""

    port: int
    generator: Generator
    lines: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    @cached_property
    def client(self) -> OpenAI:
        """OpenAI's own; each has certificates of its own, which take memory."""
        return self.client_with("none")

    def client_with(self, key: str) -> OpenAI:
        """OpenAI's own, which tries nothing twice."""
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=patience(60))


Serve = Callable[[ServerSettings], Served]


@pytest.fixture(scope="session")
def served_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that a session's tests share."""
    return write_served(tmp_path_factory.mktemp("served") / "small.gguf")


def write_served(path: Path, kind: TensorType = TensorType.Q8_0) -> Path:
    """A model of 4,096 tokens; its answers are noise, but the same noise every time."""
    write_llama(
        path,
        config=SHAPE,
        types=every_matrix(kind),
        tokenizer_metadata=sentencepiece_tokenizer(SHAPE.vocab),
        seed=7,
    )
    return path


@contextmanager
def serving(path: Path, settings: ServerSettings) -> Iterator[Served]:
    """A server, until it has ended."""
    generator = Generator(ModelProvider(path, settings))
    lines: list[str] = []
    try:
        generator.model_provider.ready.result()
        with (
            HTTPServer(replace(settings, port=0)) as http,
            http.answering(generator, lines.append),
        ):
            yield Served(port=http.server_port, generator=generator, lines=lines)
    finally:
        generator.stop_and_join()
    assert generator.failure is None


@pytest.fixture
def serve(served_path: Path) -> Iterator[Serve]:
    """Starts a server; it ends with the test."""
    with ExitStack() as stack:
        yield lambda settings: stack.enter_context(serving(served_path, settings))


@pytest.fixture(scope="module")
def served(served_path: Path) -> Iterator[Served]:
    """A server of four windows that a module's tests share."""
    with serving(served_path, ServerSettings(cache=EXACT)) as found:
        yield found
