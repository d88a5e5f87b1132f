"""ember's network in mlx-lm's `BatchGenerator`: a sequence among others is what it is alone."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import BatchGenerator

from kvcache import Backend, CacheConfig, make_prompt_cache
from models import load
from models.gguf.tensor_types import TensorType
from models.network.llama import Model
from tests.gguf_factory import LlamaShape, every_matrix, sentencepiece_tokenizer, write_llama

SHAPE = LlamaShape(layers=3, width=96, ffn=160, heads=6, kv_heads=2, vocab=311, context=4000)
# Around the edges of blocks, of the hot ring and of the window; some alike.
LENGTHS = (1, 2, 9, 17, 33, 36, 37, 64, 97, 131, 190, 191, 307, 9, 17)
POLICIES: dict[str, dict[str, Any]] = {
    "encoded": {"keys": "hkivi4", "values": "turbo3u", "hot": 20, "block": 32},
    "unencoded": {"keys": "f16", "values": "f16", "hot": 7, "block": 16},
    "nothing hot": {"keys": "h8", "values": "h8", "hot": 0, "block": 16, "sinks": 0},
}
Answer = tuple[list[int], list[np.ndarray]]  # tokens, and the log-probabilities they came of


def _file(folder: Path, kind: TensorType) -> Path:
    path = folder / f"{kind.name}.gguf"
    write_llama(
        path,
        config=SHAPE,
        types=every_matrix(kind),
        tokenizer_metadata=sentencepiece_tokenizer(SHAPE.vocab),
        seed=5,
    )
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(_file(tmp_path_factory.mktemp("models"), TensorType.Q8_0)).model


def _answers(
    model: Model,
    config: CacheConfig,
    prompts: Sequence[list[int]],
    *,
    at_once: int,
    tokens: int = 9,
    late: int = 0,
) -> list[Answer]:
    """Greedy answers; `late` prompts are put in while others are answered."""
    generator = BatchGenerator(
        model, max_tokens=tokens, prefill_batch_size=at_once, prefill_step_size=64
    )
    found: dict[int, Answer] = {}

    def insert(some: Sequence[list[int]]) -> None:
        caches = [make_prompt_cache(model, config) for _ in some]
        lengths = [tokens + 3 * (len(prompt) % 4) for prompt in some]
        for uid in generator.insert(some, lengths, caches=caches):
            found[uid] = [], []

    insert(prompts[: len(prompts) - late])
    waiting = list(prompts[len(prompts) - late :])
    while responses := generator.next_generated():
        for each in responses:
            found[each.uid][0].append(each.token)
            found[each.uid][1].append(np.asarray(each.logprobs))
        if waiting:
            insert([waiting.pop()])
    generator.close()
    order = [*range(len(prompts) - late), *reversed(range(len(prompts) - late, len(prompts)))]
    return [found[order.index(at)] for at in range(len(prompts))]


def _prompts() -> list[list[int]]:
    chance = random.Random(7)
    return [[chance.randrange(3, SHAPE.vocab) for _ in range(length)] for length in LENGTHS]


@pytest.mark.parametrize("at_once", [1, 8])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_row_is_to_the_last_bit_what_it_is_alone(model: Model, policy: str, at_once: int) -> None:
    config = CacheConfig(max_tokens=190, backend=Backend.CPU, **POLICIES[policy])
    prompts = _prompts()
    alone = [_answers(model, config, [prompt], at_once=1)[0] for prompt in prompts]
    together = _answers(model, config, prompts, at_once=at_once, late=4)
    for got, want in zip(together, alone, strict=True):
        assert got[0] == want[0]
        for one, other in zip(got[1], want[1], strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "kind",
    [TensorType.F32, TensorType.BF16, TensorType.Q4_0, TensorType.Q5_1, TensorType.IQ4_NL],
    ids=lambda kind: kind.name,
)
def test_products_of_many_rows_are_those_of_one(tmp_path: Path, kind: TensorType) -> None:
    model = load(_file(tmp_path, kind)).model
    x = mx.random.normal((13, 1, SHAPE.width), key=mx.random.key(3))
    for matrix in (model.layers[0].gate_up[0], model.layers[0].output, model.head):
        for rows in (2, 7, 8, 9, 12, 13):
            got = np.asarray(matrix(x[:rows]))
            for row in range(rows):
                np.testing.assert_array_equal(got[row], np.asarray(matrix(x[row : row + 1]))[0])


def test_the_reference_says_the_same_but_for_rounding(tmp_path: Path) -> None:
    model = load(_file(tmp_path, TensorType.Q8_0), backend=Backend.REFERENCE).model
    config = CacheConfig(max_tokens=190, backend=Backend.REFERENCE, **POLICIES["unencoded"])
    prompts = _prompts()[:9]
    alone = [_answers(model, config, [prompt], at_once=1, tokens=3)[0] for prompt in prompts]
    together = _answers(model, config, prompts, at_once=8, tokens=3, late=2)
    for got, want in zip(together, alone, strict=True):
        for one, other in zip(got[1], want[1], strict=True):
            np.testing.assert_allclose(one, other, atol=2e-3)
