"""Reading good GGUF files, checked against gguf-py. Bad ones: test_gguf_header."""

import os
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from models.errors import GGUFError
from models.gguf.decode import decode
from models.gguf.file import GGUFFile
from models.gguf.tensor_types import TensorType
from tests.gguf_factory import LlamaShape, q4_k_m, sentencepiece_tokenizer, write_llama
from tests.models.gguf.raw_gguf import ARRAY, BOOL, STRING, RawGGUF, Writer, array, pair, tensor
from tests.models.gguf.raw_gguf import string as text
from tests.patience import within

TINY = LlamaShape(
    layers=3, width=256, ffn=768, heads=8, kv_heads=2, vocab=307, context=64, rope_freqs=True
)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    tokenizer = sentencepiece_tokenizer(TINY.vocab)
    write_llama(path, config=TINY, types=q4_k_m(TINY), tokenizer_metadata=tokenizer, seed=1)
    return path


def test_tensors_agree_with_gguf_py(llama: Path) -> None:
    expected = {entry.name: entry for entry in gguf.GGUFReader(llama).tensors}
    with GGUFFile(llama) as file:
        assert list(file.tensors) == list(expected)
        for name, info in file.tensors.items():
            entry = expected[name]
            assert info.shape == tuple(int(size) for size in entry.shape[::-1])
            assert (info.type, info.nbytes) == (entry.tensor_type, entry.n_bytes)
            assert info.offset == entry.data_offset
            rows = file.tensor(name).data
            assert rows.shape == (info.rows, info.nbytes // info.rows)
            assert (rows.reshape(-1) == entry.data.view(np.uint8).reshape(-1)).all()
        assert file.tensors["blk.0.ffn_down.weight"].shape == (TINY.width, TINY.ffn)
        assert file.tensors["blk.2.attn_v.weight"].type is TensorType.Q6_K


@pytest.mark.parametrize("name", ["blk.0.ffn_down.weight", "blk.1.attn_q.weight"])
def test_parts_are_those_of_the_whole(name: str, llama: Path) -> None:
    with GGUFFile(llama) as file:
        info = file.tensors[name]
        whole = decode(file.tensor(info))
        rows, columns = info.leading(range(5, 200)), info.columns(range(0, 256))
        for part, wanted in ((rows, whole[5:200]), (columns, whole[:, :256])):
            tensor = file.tensor(part)
            assert tensor.data.base is not None  # in the mapping
            assert tensor.nbytes == part.nbytes == tensor.data.nbytes
            assert (decode(tensor) == wanted).all()
            some = np.empty((7, part.row_bytes), np.uint8)
            tensor.read(some, 11)
            assert (some == tensor.data[11:18]).all()
            piece = tensor.in_one_piece()
            assert (piece is tensor) == (part is rows or part.step == part.row_bytes)
            assert (piece.data == tensor.data).all()
            assert piece.data.flags.c_contiguous


def test_metadata_agrees_with_gguf_py(llama: Path) -> None:
    fields = gguf.GGUFReader(llama).fields
    with GGUFFile(llama) as file:
        keys = [key for key in fields if not key.startswith("GGUF.")]
        assert list(file.metadata) == keys
        for key in keys:
            value = file.metadata[key]
            contents = fields[key].contents()
            assert (value.tolist() if isinstance(value, np.ndarray) else value) == contents
        assert file.version == 3


def test_every_value_type_is_read(write: Writer) -> None:
    values: list[tuple[int, str, float]] = [
        (0, "B", 200),
        (1, "b", -100),
        (2, "H", 60000),
        (3, "h", -30000),
        (4, "I", 2**32 - 1),
        (5, "i", -(2**31)),
        (6, "f", 0.5),
        (10, "Q", 2**64 - 1),
        (11, "q", -(2**63)),
        (12, "d", 0.1),
        (BOOL, "?", True),
    ]
    pairs = [pair(f"s{kind}", kind, struct.pack("<" + code, v)) for kind, code, v in values]
    pairs += [
        pair(f"a{kind}", ARRAY, array(kind, 3, struct.pack("<3" + code, v, v, v)))
        for kind, code, v in values
    ]
    pairs += [pair("empty", ARRAY, array(STRING, 0, b"")), pair("text", STRING, text("é\0x"))]
    with GGUFFile(write(RawGGUF(pairs=tuple(pairs)).encode())) as file:
        for kind, _, value in values:
            assert file.metadata[f"s{kind}"] == value
            assert type(file.metadata[f"s{kind}"]) is type(value)
            items = file.metadata[f"a{kind}"]
            assert isinstance(items, np.ndarray)
            assert items.tolist() == [value] * 3
        assert file.metadata["empty"] == []
        assert file.metadata["text"] == "é\0x"


def test_version_2_and_other_alignments_are_read(write: Writer) -> None:
    alignment = pair("general.alignment", 4, struct.pack("<I", 128))
    raw = RawGGUF(version=2, pairs=(alignment,), alignment=128, data=b"\x07" * 32)
    with GGUFFile(write(raw.encode())) as file:
        assert file.version == 2
        assert file.tensors["norm"].offset % 128 == 0
        assert (file.tensor("norm").data == 7).all()


def test_leading_axes_are_flattened_to_rows(write: Writer) -> None:
    raw = RawGGUF(tensors=(tensor("experts", (5, 3, 2)),), data=bytes(120))
    with GGUFFile(write(raw.encode())) as file:
        assert file.tensors["experts"].shape == (2, 3, 5)
        assert file.tensor("experts").data.shape == (6, 20)


def test_rows_are_read_only_and_outlive_the_file(llama: Path) -> None:
    with GGUFFile(llama) as file:
        rows = file.tensor("output_norm.weight").data
        expected = rows.copy()
    assert not rows.flags.writeable
    assert (rows == expected).all()
    with pytest.raises(GGUFError, match="closed"):
        file.tensor("output_norm.weight")


def test_missing_tensor_is_named(llama: Path) -> None:
    message = r"^\S+tiny\.gguf: there is no tensor 'x'"
    with pytest.raises(GGUFError, match=message), GGUFFile(llama) as file:
        file.tensor("x")


def test_rows_are_read_without_the_mapping(llama: Path) -> None:
    with GGUFFile(llama) as file:
        tensor = file.tensor("blk.1.ffn_down.weight")
        got = np.empty((7, tensor.data.shape[1]), np.uint8)
        tensor.read(got, 11)
        assert (got == tensor.data[11:18]).all()
    assert (tensor.data[11:18] == got).all()
    with pytest.raises(GGUFError, match="closed"):
        tensor.read(got)


def test_a_read_of_a_cut_file_is_refused(llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(llama.read_bytes())
    with GGUFFile(path) as file:
        info = file.tensors["blk.1.ffn_down.weight"]
        tensor = file.tensor(info)
        os.truncate(path, info.offset + 100)
        with pytest.raises(GGUFError, match=rf"was cut to {info.offset + 100} bytes"):
            tensor.read(np.empty(tensor.data.shape, np.uint8))


def test_large_vocabulary_is_read_quickly(write: Writer) -> None:
    words = [f"piece{i}" for i in range(150_000)]
    tokens = pair("tokens", ARRAY, array(STRING, len(words), b"".join(map(text, words))))
    path = write(RawGGUF(pairs=(tokens,)).encode())
    with within(1):
        file = GGUFFile(path)
    with file:
        assert file.metadata["tokens"] == words


def test_what_is_no_file_is_refused(tmp_path: Path, write: Writer) -> None:
    with pytest.raises(GGUFError, match="is a directory"):
        GGUFFile(tmp_path)
    with pytest.raises(GGUFError, match="is empty"):
        GGUFFile(write(b""))
    with pytest.raises(GGUFError, match=r"absent\.gguf: cannot be read: No such file"):
        GGUFFile(tmp_path / "absent.gguf")
    with pytest.raises(GGUFError, match="cannot be read: embedded null"):
        GGUFFile("\0.gguf")
