"""What is given to `models` in place of paths, names, ids and tensors is refused in a line."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from kvcache import Backend, EmberError, make_prompt_cache
from models import GGUFFile, LoadedModel, decode, load
from models.gguf.tensor_types import TensorType
from tests.gguf_factory import LlamaShape, every_matrix, sentencepiece_tokenizer, write_llama

SHAPE = LlamaShape(layers=2, width=64, ffn=96, heads=2, kv_heads=1, vocab=307, context=128)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    path = tmp_path_factory.mktemp("given") / "tiny.gguf"
    vocabulary = sentencepiece_tokenizer(SHAPE.vocab)
    write_llama(
        path,
        config=SHAPE,
        types=every_matrix(TensorType.Q8_0),
        tokenizer_metadata=vocabulary,
        seed=0,
    )
    return load(path)


def _refused(words: str, call: Callable[..., object], given: Mapping[str, Any]) -> None:
    with pytest.raises(EmberError, match=words) as told:
        call(**given)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("value", [5, None, "", [], b"smollm2"])
def test_a_model_is_a_name_or_a_path(value: Any) -> None:
    _refused("got model=", load, {"model": value})
    _refused("got path=", GGUFFile, {"path": value})


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(("backend", each) for each in ("metal", 5, None)),
        *(("pretokenizer", each) for each in (5, "", ["llama3"])),
        *(("chat_template", each) for each in (5, "", ["chatml"])),
    ],
)
def test_loading_takes_what_it_says(argument: str, value: Any) -> None:
    _refused(f"got {argument}=", load, {"model": "smollm2", argument: value})


def test_a_backend_may_be_a_word(tiny: LoadedModel) -> None:
    assert type(load(tiny.path, backend="reference").model) is type(
        load(tiny.path, backend=Backend.REFERENCE).model
    )


@pytest.mark.parametrize("ids", ["ab", None, [1, 2], [[1.5]], [[1], [1, 2]], 5, {}, [[True]]])
def test_a_network_reads_ids(tiny: LoadedModel, ids: Any) -> None:
    _refused("ids", tiny.model, {"ids": ids})


@pytest.mark.parametrize("ids", [[[999]], [[-1]], [[]]])
def test_a_network_reads_ids_of_its_vocabulary(tiny: LoadedModel, ids: Any) -> None:
    _refused("got token ids", tiny.model, {"ids": mx.array(ids, mx.int32)})


def test_ids_may_be_lists_and_numpys(tiny: LoadedModel) -> None:
    ids = [[5, 7, 11]]
    right = np.array(tiny.model(mx.array(ids)))
    for given in (ids, np.array(ids), ((5, 7, 11),)):
        found = tiny.model(given)
        np.testing.assert_array_equal(np.array(found), right)


def test_there_is_a_cache_for_each_layer(tiny: LoadedModel) -> None:
    cache = make_prompt_cache(tiny.model)
    given = {"ids": mx.array([[5]]), "cache": cache[:1]}
    _refused("got 1 caches, expected one for each of 2 layers", tiny.model, given)
    assert not cache[0].offset


@pytest.mark.parametrize("text", [5, None, b"ab", ["ab"]])
def test_a_tokenizer_encodes_text(tiny: LoadedModel, text: Any) -> None:
    _refused("got text=", tiny.tokenizer.encode, {"text": text})


@pytest.mark.parametrize("ids", ["ab", 5, None, [1.5], [-1], [999], ["a"], [None]])
def test_a_tokenizer_decodes_ids(tiny: LoadedModel, ids: Any) -> None:
    _refused("got ids=", tiny.tokenizer.decode, {"ids": ids})


def test_ids_to_decode_may_be_an_array(tiny: LoadedModel) -> None:
    ids = [40, 41, 42]
    assert {tiny.tokenizer.decode(each) for each in (ids, np.array(ids), mx.array(ids))} == {
        tiny.tokenizer.decode(iter(ids))
    }


@pytest.mark.parametrize("tensor", [5, None, ["x"], "nowhere"])
def test_a_tensor_is_asked_for_by_name(tiny: LoadedModel, tensor: Any) -> None:
    with GGUFFile(tiny.path) as file:
        _refused("tensor", file.tensor, {"tensor": tensor})


@pytest.mark.parametrize("tensor", [5, None, "output.weight", np.ones(3)])
def test_a_tensor_is_decoded(tensor: Any) -> None:
    _refused("got tensor=", decode, {"tensor": tensor})


def test_paths_may_be_text(tiny: LoadedModel) -> None:
    with GGUFFile(str(tiny.path)) as file:
        assert file.path == Path(tiny.path)
