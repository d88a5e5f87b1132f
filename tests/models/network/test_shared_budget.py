"""Chats of one budget in ember's networks, whose kernels attend in all layers at once."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from kvcache import Backend, CacheConfig, SharedBudget, make_prompt_cache
from models import load
from models.gguf.tensor_types import TensorType
from tests.gguf_factory import LlamaShape, every_matrix, sentencepiece_tokenizer, write_llama

SHAPE = LlamaShape(layers=3, width=64, ffn=96, heads=2, kv_heads=1, vocab=307, context=512)


@pytest.mark.parametrize("backend", [Backend.CPU, Backend.REFERENCE])
def test_chats_of_one_budget_say_what_they_say_alone(backend: Backend, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    vocabulary = sentencepiece_tokenizer(SHAPE.vocab)
    kind = every_matrix(TensorType.Q8_0)
    write_llama(path, config=SHAPE, types=kind, tokenizer_metadata=vocabulary, seed=7)
    model = load(path, backend=backend).model
    config = CacheConfig(hot=16, block=16, keys="q8", values="q4", backend=backend)
    shared = SharedBudget("1MiB")
    chats = [shared.make_prompt_cache(model, config) for _ in range(2)]
    alone = [make_prompt_cache(model, config) for _ in range(2)]
    ids = np.random.default_rng(3).integers(3, SHAPE.vocab, size=(2, 150))
    for start, stop in ((0, 61), *((at, at + 1) for at in range(61, 150))):
        for chat, like, own in zip(chats, alone, ids, strict=True):
            step = mx.array(own[None, start:stop])
            np.testing.assert_allclose(
                np.array(model(step, chat)), np.array(model(step, like)), atol=5e-3
            )
    assert {cache.stats().cold for chat in chats for cache in chat} == {alone[0][0].stats().cold}
    assert sum(cache.nbytes for chat in chats for cache in chat) <= shared.taken < 2**20
