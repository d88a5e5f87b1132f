"""A step over weights that are not what they were counts for nothing."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from kvcache import Backend, CacheConfig, make_prompt_cache
from kvcache.unencoded.dynamic import DynamicKVCache
from models.errors import GGUFError
from models.gguf.tensor_types import TensorType
from models.loader import load
from models.network.cpu_llama import CpuModel
from tests.gguf_factory import LlamaShape, every_matrix, sentencepiece_tokenizer, write_llama

SHAPE = LlamaShape(layers=3, width=96, ffn=160, heads=6, kv_heads=2, vocab=307, context=128)
PROMPT, NEXT = mx.array([[5, 7, 11, 13, 17]]), mx.array([[19]])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> CpuModel:
    path: Path = tmp_path_factory.mktemp("check") / "tiny.gguf"
    write_llama(
        path,
        config=SHAPE,
        types=every_matrix(TensorType.Q8_0),
        tokenizer_metadata=sentencepiece_tokenizer(SHAPE.vocab),
        seed=7,
    )
    found = load(path, backend=Backend.CPU).model
    assert isinstance(found, CpuModel)
    return found


class _Gone:
    """Says at one call that the file has changed."""

    def __init__(self, at: int) -> None:
        self.calls, self._at = 0, at

    def __call__(self) -> None:
        self.calls += 1
        if self.calls == self._at:
            raise GGUFError("was cut")


@pytest.mark.parametrize("call", [1, 2], ids=["layers", "logits"])
def test_no_number_of_it_is_given_out(
    model: CpuModel, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make_prompt_cache(model, CacheConfig(backend=Backend.CPU))
    gone = _Gone(call)
    monkeypatch.setattr(model, "_check", gone)
    with pytest.raises(GGUFError):
        model(PROMPT, cache)
    assert gone.calls == call
    assert {each.offset for each in cache} == {0 if call == 1 else PROMPT.size}


def test_caches_stay_as_they_were(model: CpuModel, monkeypatch: pytest.MonkeyPatch) -> None:
    caches = [make_prompt_cache(model, CacheConfig(backend=Backend.CPU)) for _ in range(2)]
    for cache in caches:
        model(PROMPT, cache)
    monkeypatch.setattr(model, "_check", _Gone(1))
    with pytest.raises(GGUFError):
        model(mx.array([[23, 29]]), caches[0])
    monkeypatch.undo()
    found = [np.asarray(model(NEXT, cache)) for cache in caches]
    assert np.array_equal(*found)


def test_so_it_is_where_layers_run_one_by_one(
    model: CpuModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = [DynamicKVCache(max_seq_len=64) for _ in model.layers]
    monkeypatch.setattr(model, "_check", _Gone(1))
    with pytest.raises(GGUFError):
        model(PROMPT, cache)
