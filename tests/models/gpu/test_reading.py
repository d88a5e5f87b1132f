"""Rows of several tensors, in pieces: each once, and nothing of a file that was cut."""

import os
from pathlib import Path
from threading import Lock

import numpy as np
import pytest

from models.errors import GGUFError
from models.gguf.file import GGUFFile
from models.gguf.tensor import Bytes
from models.gguf.tensor_types import TensorType
from models.gpu import reading
from models.gpu.reading import read_rows
from tests.gguf_factory import LlamaShape, every_matrix, sentencepiece_tokenizer, write_llama
from tests.models.gguf.blocks import random_rows, tensor_of

NAMES = [f"blk.1.attn_{name}.weight" for name in "qkv"]


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    shape = LlamaShape(layers=2, width=96, ffn=160, heads=3, kv_heads=1, vocab=307, context=64)
    path = tmp_path / "tiny.gguf"
    tokenizer = sentencepiece_tokenizer(shape.vocab)
    types = every_matrix(TensorType.Q5_1)
    write_llama(path, config=shape, types=types, tokenizer_metadata=tokenizer, seed=3)
    return path


@pytest.mark.parametrize("piece", [1, 1000, 1 << 20])
def test_every_row_is_put_once(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_PIECE", piece)
    counts = (17, 1, 29)
    tensors = [
        tensor_of(TensorType.Q8_0, random_rows(TensorType.Q8_0, seed, rows=rows))
        for seed, rows in enumerate(counts)
    ]
    got = np.zeros((sum(counts), tensors[0].data.shape[1]), np.uint8)
    times, lock = np.zeros(len(got), int), Lock()

    def put(first: int, rows: Bytes) -> None:
        assert rows.nbytes <= max(piece, got.shape[1])
        got[first : first + len(rows)] = rows
        with lock:
            times[first : first + len(rows)] += 1

    read_rows(tensors, put)
    assert (times == 1).all()
    np.testing.assert_array_equal(got, np.concatenate([each.data for each in tensors]))


def test_a_file_is_read_and_a_cut_one_refused(llama: Path) -> None:
    got: list[bytes] = []
    with GGUFFile(llama) as file:
        tensors = [file.tensor(name) for name in NAMES]
        read_rows(tensors, lambda _first, rows: got.append(rows.tobytes()))
        assert sorted(got) == sorted(each.data.tobytes() for each in tensors)
        os.truncate(llama, file.tensors[NAMES[2]].offset + 11)
        with pytest.raises(GGUFError, match="was cut to"):
            read_rows(tensors, lambda _first, _rows: None)
