"""What `load` refuses: every error names the file once, whoever raised it."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import gguf
import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.sample_utils import make_sampler

import models
from kvcache import Backend, EmberError
from kvcache.errors import NativeUnavailableError
from models import loader
from models.errors import ChatTemplateError, GGUFError
from models.gguf.file import GGUFFile
from models.gguf.tensor_types import TensorType
from models.loader import load
from models.native.kernels import Kernels
from models.network.layers import Linear
from models.network.llama import Model
from models.text.messages import conversation
from tests.gguf_factory import (
    LlamaShape,
    MetadataItem,
    every_matrix,
    sentencepiece_tokenizer,
    write_llama,
)

TINY = LlamaShape(layers=1, width=64, ffn=96, heads=2, kv_heads=1, vocab=307, context=32)
BAD: dict[str, tuple[dict[str, MetadataItem], str]] = {
    "a key of the wrong type": ({"llama.block_count": "two"}, "llama.block_count"),
    "dimensions": ({"llama.attention.head_count": 0}, "got heads=0"),
    "part of a split file": ({"split.no": 0, "split.count": 3}, "one of 3 parts of a model"),
    "missing tensor": ({"llama.block_count": 2}, "tensor 'blk.1.attn_norm.weight' is missing"),
    "tensor of another shape": ({"llama.feed_forward_length": 95}, "has shape [96, 64]"),
    "tokenizer family": ({"tokenizer.ggml.model": "bert"}, "supported are: llama, gpt2"),
}


def refusal(path: Path, backend: Backend = Backend.AUTO) -> str:
    with pytest.raises(GGUFError) as caught:
        load(path, backend=backend)
    return str(caught.value)


def write(path: Path, changes: Mapping[str, MetadataItem]) -> None:
    write_llama(
        path,
        config=TINY,
        types=every_matrix(TensorType.Q8_0),
        tokenizer_metadata=sentencepiece_tokenizer(TINY.vocab) | dict(changes),
        seed=3,
    )


def test_without_its_kernels_the_network_runs_in_plain_mlx_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> Kernels:
        raise NativeUnavailableError("no compiler here")

    path = tmp_path / "tiny.gguf"
    write(path, {})
    monkeypatch.setattr(loader, "kernels", fail)
    monkeypatch.setattr(Backend, "resolve", lambda _: Backend.CPU)
    loaded = load(path)
    assert type(loaded.model) is Model
    assert loaded.notes[-1] == "the network runs in plain MLX, slowly: no compiler here"
    with pytest.raises(NativeUnavailableError):
        load(path, backend=Backend.CPU)


@pytest.mark.parametrize("case", BAD)
def test_refusals_name_the_file_once(tmp_path: Path, case: str) -> None:
    changes, message = BAD[case]
    path = tmp_path / "bad.gguf"
    write(path, changes)
    error = refusal(path)
    assert error.startswith(f"{path}: ")
    assert error.count("bad.gguf") == 1
    assert message in error


def test_a_chat_template_is_not_looked_at_before_it_is_used(tmp_path: Path) -> None:
    for number, template in enumerate(("{% if %}", "{{ 2 ** (2 ** 36) }}", "x" * 300_000, ["x"])):
        path = tmp_path / f"{number}.gguf"
        write(path, {"tokenizer.chat_template": template})
        assert load(path, backend=Backend.REFERENCE).tokenizer.vocab_size == TINY.vocab


def test_a_chat_template_can_be_given(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write(path, {"tokenizer.chat_template": "{% if %}"})
    template = load(path, backend=Backend.REFERENCE, chat_template="llama2").template
    assert template.render(conversation("Hi")) == "<s>[INST] Hi [/INST]"
    with pytest.raises(ChatTemplateError, match="no chat template 'lama2'"):
        load(path, chat_template="lama2")


def test_a_later_part_of_a_split_file_is_told_how_to_be_whole(tmp_path: Path) -> None:
    """Only the first part has more metadata than this, and none has all tensors."""
    path = tmp_path / "model-00002-of-00003.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.kv_data[0].pop("general.architecture")
    for key, value in (("split.no", 1), ("split.count", 3), ("split.tensors.count", 57)):
        writer.add_uint16(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert refusal(path).endswith("llama-gguf-split --merge FIRST-PART OUT.gguf")


@pytest.mark.parametrize("count", [0, 1])
def test_a_merged_file_is_whole(tmp_path: Path, count: int) -> None:
    write(tmp_path / "whole.gguf", {"split.count": count})
    assert load(tmp_path / "whole.gguf").name == "random weights"


def test_what_is_no_gguf_file_is_named_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    for data in (b"", b"no model", b"GGUF\x09\0\0\0"):
        path.write_bytes(data)
        assert refusal(path).startswith(f"{path}: ")
        assert refusal(path).count("bad.gguf") == 1


def test_a_scale_that_is_not_finite_names_file_and_tensor(tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    write(path, {})
    offset = next(
        tensor.data_offset
        for tensor in gguf.GGUFReader(path).tensors
        if tensor.name == "blk.0.ffn_up.weight"
    )
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(np.float16(np.nan).tobytes())
    error = refusal(path, Backend.REFERENCE)
    assert error.startswith(f"{path}: tensor 'blk.0.ffn_up.weight' (Q8_0): a scale is NaN")
    assert error.count("bad.gguf") == 1


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", [TensorType.Q8_0, TensorType.F16], ids=lambda kind: kind.name)
def test_fewer_rows_than_tokens_are_refused_before_a_tensor_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: TensorType, tied: bool
) -> None:
    path = tmp_path / "short.gguf"
    write_llama(
        path,
        config=replace(TINY, tied=tied),
        types=every_matrix(kind),
        tokenizer_metadata=sentencepiece_tokenizer(TINY.vocab + 1),
        seed=3,
    )
    monkeypatch.setattr(GGUFFile, "tensor", lambda self, name: pytest.fail("read a tensor"))
    assert "has 307 rows, expected one for each of the 308 tokens" in refusal(path)


@pytest.mark.parametrize("backend", [Backend.CPU, Backend.REFERENCE])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", [TensorType.Q8_0, TensorType.F16], ids=lambda kind: kind.name)
def test_rows_that_pad_a_vocabulary_are_never_drawn(
    tmp_path: Path, kind: TensorType, tied: bool, backend: Backend
) -> None:
    """Half of the file's rows, of equal weight, so that drawing from them would be seen."""
    path = tmp_path / "padded.gguf"
    write_llama(
        path,
        config=replace(TINY, tied=tied, context=128, vocab=2 * TINY.vocab),
        types=every_matrix(kind),
        tokenizer_metadata=sentencepiece_tokenizer(TINY.vocab),
        seed=3,
    )
    loaded = load(path, backend=backend)
    assert loaded.model.vocabulary == loaded.tokenizer.vocab_size == TINY.vocab
    draw = make_sampler(temp=100.0)
    stream = generate_step(mx.array([1, 9]), loaded.model, max_tokens=25, sampler=draw)
    ids = [int(token) for token, _ in stream]
    assert max(ids) < TINY.vocab
    assert len(set(ids)) > 12
    with pytest.raises(EmberError, match=r"expected 0 to 306"):
        loaded.model(mx.array([[TINY.vocab]]))


def test_an_unquantized_weight_that_is_not_finite_names_file_and_tensor(tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    write(path, {})
    offset = next(
        tensor.data_offset
        for tensor in gguf.GGUFReader(path).tensors
        if tensor.name == "output_norm.weight"
    )
    with path.open("r+b") as file:
        file.seek(offset + 4 * 33)
        file.write(np.float32(np.nan).tobytes())
    assert "tensor 'output_norm.weight' (F32): a weight is NaN or infinite" in refusal(path)


def test_a_file_that_shrinks_while_it_is_read_is_noticed(
    tmp_path: Path,
) -> None:
    path = tmp_path / "short.gguf"
    write(path, {})
    with GGUFFile(path) as file:
        os.truncate(path, path.stat().st_size // 2)
        with pytest.raises(GGUFError, match=r"was cut to .* bytes while in use"):
            file.tensor("output_norm.weight")


@pytest.mark.parametrize(
    "kind", [TensorType.F32, TensorType.Q8_0, TensorType.Q4_1], ids=lambda kind: kind.name
)
def test_tensors_may_lie_anywhere_and_end_with_the_file(tmp_path: Path, kind: TensorType) -> None:
    """At multiples of 8 bytes, of a page, and of what is usual: the same numbers to the bit."""
    found = []
    for alignment in (8, 32, 4096):
        path = tmp_path / f"{alignment}.gguf"
        write_llama(
            path,
            config=replace(TINY, width=96, context=128),
            types=every_matrix(kind),
            tokenizer_metadata=sentencepiece_tokenizer(TINY.vocab)
            | {"general.alignment": alignment, "general.description": "x" * 5},
            seed=4,
        )
        with GGUFFile(path) as file:
            ends = [info.offset + info.nbytes for info in file.tensors.values()]
            assert (alignment > 8) == all(not info.offset % 32 for info in file.tensors.values())
        os.truncate(path, max(ends))
        model = load(path, backend=Backend.CPU).model
        found.append(np.asarray(model(mx.array([[5, 7, 11]]), model.make_cache())))
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[1], found[2])


def test_on_the_cpu_weights_stay_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write(path, {})
    before = mx.get_active_memory()
    loaded = load(path, backend=Backend.CPU)
    assert mx.get_active_memory() - before < 0.05 * loaded.file_bytes
    assert 0.8 * loaded.file_bytes < loaded.weight_bytes < loaded.file_bytes
    memory = mx.array(loaded.model(mx.array([[1, 9, 30]])))
    del loaded
    # As the mapping ends with the network, so does what the next one finds in its place.
    assert mx.array_equal(load(path, backend=Backend.CPU).model(mx.array([[1, 9, 30]])), memory)


def test_the_reference_holds_what_gguf_py_decodes(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write(path, {})
    steps: list[tuple[int, int]] = []
    loaded = load(path, backend=Backend.REFERENCE, progress=lambda *step: steps.append(step))
    with models.GGUFFile(path) as file:
        weights = sum(models.decode(file.tensor(name)).size for name in file.tensors)
        table = models.decode(file.tensor("token_embd.weight"))
    assert loaded.weight_bytes == 4 * weights
    embedding = loaded.model.embedding
    assert isinstance(embedding, Linear)
    assert mx.array_equal(embedding.weight, mx.array(table))
    assert [done for done, _ in steps] == sorted({done for done, _ in steps})
    assert steps[-1][0] == steps[-1][1]
