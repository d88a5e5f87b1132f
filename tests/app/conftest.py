"""A tiny random Llama in a GGUF file, for end-to-end tests that need no download."""

from pathlib import Path

import pytest

from app.engine import Engine
from kvcache import CacheConfig, HotDtype
from models import load
from models.tensor_types import TensorType
from tests.gguf_factory import LlamaShape, every_matrix, sentencepiece_tokenizer, write_llama

TINY = LlamaShape(layers=3, width=96, ffn=160, heads=6, kv_heads=2, vocab=611, context=128)


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file; its answers are noise, but the same noise every time."""
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    write_llama(
        path,
        config=TINY,
        types=every_matrix(TensorType.Q8_0),
        tokenizer_metadata=sentencepiece_tokenizer(TINY.vocab),
        seed=5,
    )
    return path


@pytest.fixture
def engine(tiny_path: Path) -> Engine:
    """A fresh engine over the tiny model, exact to float32."""
    return Engine(load(tiny_path), CacheConfig(hot_dtype=HotDtype.F32))
