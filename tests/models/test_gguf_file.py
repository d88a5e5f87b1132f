"""Reading good GGUF files, checked against gguf-py, and refusing bad ones."""

import struct
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.errors import GGUFError
from models.gguf_file import GGUFFile
from models.gguf_header import MAX_HEADER_BYTES
from models.tensor_types import TensorType
from tests.gguf_factory import LlamaShape, q4_k_m, sentencepiece_tokenizer, write_llama
from tests.models.raw_gguf import ARRAY, BOOL, F32, I32, STRING, U8, RawGGUF, array, pair, tensor
from tests.models.raw_gguf import string as text

Writer = Callable[[bytes], Path]
TINY = LlamaShape(
    layers=3, width=256, ffn=768, heads=8, kv_heads=2, vocab=307, context=64, rope_freqs=True
)
HUGE = 2**63 + 3


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    def to_file(data: bytes) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(data)
        return path

    return to_file


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
            rows = file.rows(name)
            assert rows.shape == (info.rows, info.nbytes // info.rows)
            assert (rows.reshape(-1) == entry.data.view(np.uint8).reshape(-1)).all()
        assert file.tensors["blk.0.ffn_down.weight"].shape == (TINY.width, TINY.ffn)
        assert file.tensors["blk.2.attn_v.weight"].type is TensorType.Q6_K


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
        assert (file.rows("norm") == 7).all()


def test_leading_axes_are_flattened_to_rows(write: Writer) -> None:
    raw = RawGGUF(tensors=(tensor("experts", (5, 3, 2)),), data=bytes(120))
    with GGUFFile(write(raw.encode())) as file:
        assert file.tensors["experts"].shape == (2, 3, 5)
        assert file.rows("experts").shape == (6, 20)


def test_rows_are_read_only_and_outlive_the_file(llama: Path) -> None:
    with GGUFFile(llama) as file:
        rows = file.rows("output_norm.weight")
        expected = rows.copy()
    assert not rows.flags.writeable
    assert (rows == expected).all()
    with pytest.raises(GGUFError, match="closed"):
        file.rows("output_norm.weight")


def test_missing_tensor_is_named(llama: Path) -> None:
    with GGUFFile(llama) as file, pytest.raises(GGUFError, match=r"tiny\.gguf: has no tensor 'x'"):
        file.rows("x")


def _file_backed_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssFile:")[1].split()[0]) << 10


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_release_lets_pages_go_and_keeps_contents(write: Writer) -> None:
    size = 16 << 20
    entries = (tensor("big", (size // 4,)), tensor("next", (8,), offset=size))
    path = write(RawGGUF(tensors=entries, data=b"\x05" * (size + 32)).encode())
    with GGUFFile(path) as file:
        rows = file.rows("big")
        assert (rows == 5).all()
        held = _file_backed_bytes()
        file.release("big")
        assert held - _file_backed_bytes() > size // 2
        assert (rows == 5).all()
        assert (file.rows("next") == 5).all()


def test_large_vocabulary_is_read_quickly(write: Writer) -> None:
    words = [f"piece{i}" for i in range(150_000)]
    tokens = pair("tokens", ARRAY, array(STRING, len(words), b"".join(map(text, words))))
    path = write(RawGGUF(pairs=(tokens,)).encode())
    start = time.perf_counter()
    with GGUFFile(path) as file:
        assert time.perf_counter() - start < 1
        assert file.metadata["tokens"] == words


GOOD = pair("general.architecture", STRING, text("llama"))
HOSTILE: dict[str, tuple[RawGGUF, str]] = {
    "magic": (RawGGUF(magic=b"GGML"), "does not start with 'GGUF'"),
    "version 1": (RawGGUF(version=1), "version 1, expected 2 or 3"),
    "version 4": (RawGGUF(version=4), "version 4, expected 2 or 3"),
    "big-endian": (RawGGUF(version=3 << 24), "big-endian"),
    "pair count": (RawGGUF(pair_count=HUGE), "metadata pairs, expected at most"),
    "tensor count": (RawGGUF(tensor_count=HUGE), "tensors, expected at most"),
    "counts past the end": (RawGGUF(tensor_count=60000), "reaches past the end"),
    "key length": (RawGGUF(pairs=(struct.pack("<Q", HUGE),)), "metadata key at byte"),
    "key not UTF-8": (RawGGUF(pairs=(pair(b"\xff\xfe", BOOL, b"\1"),)), "key .* not UTF-8"),
    "key twice": (RawGGUF(pairs=(GOOD, GOOD)), "'general.architecture' appears twice"),
    "value type": (RawGGUF(pairs=(pair("k", 13, bytes(8)),)), "'k' has the unknown value type 13"),
    "bool": (RawGGUF(pairs=(pair("k", BOOL, b"\2"),)), "'k' holds 2, expected a boolean"),
    "string length": (
        RawGGUF(pairs=(pair("k", STRING, struct.pack("<Q", HUGE)),)),
        "'k' at byte .* claims",
    ),
    "string length past the end": (
        RawGGUF(pairs=(pair("k", STRING, struct.pack("<Q", 5000)),)),
        "'k' at byte .* reaches past the end",
    ),
    "string not UTF-8": (RawGGUF(pairs=(pair("k", STRING, text(b"\xff")),)), "'k' .* not UTF-8"),
    "array count": (
        RawGGUF(pairs=(pair("k", ARRAY, array(U8, HUGE, b"")),)),
        "'k' at byte .* reaches past the end",
    ),
    "array count overflowing 64 bits in bytes": (
        RawGGUF(pairs=(pair("k", ARRAY, array(F32, 2**62, b"")),)),
        "'k' at byte .* reaches past the end",
    ),
    "string array count": (
        RawGGUF(pairs=(pair("k", ARRAY, array(STRING, HUGE, b"")),)),
        "'k' at byte .* reaches past the end",
    ),
    "string in array too long": (
        RawGGUF(pairs=(pair("k", ARRAY, array(STRING, 2, text("a") + struct.pack("<Q", HUGE))),)),
        "'k': string 1 reaches past the end",
    ),
    "string in array not UTF-8": (
        RawGGUF(pairs=(pair("k", ARRAY, array(STRING, 2, text("a") + text(b"\xc3"))),)),
        "'k': string 1 is not UTF-8",
    ),
    "array element type": (
        RawGGUF(pairs=(pair("k", ARRAY, array(99, 1, bytes(8))),)),
        "'k' has the unknown value type 99",
    ),
    "array of arrays": (
        RawGGUF(pairs=(pair("k", ARRAY, array(ARRAY, 1, array(ARRAY, 1, bytes(64)))),)),
        "'k' is an array of arrays",
    ),
    "no dimensions": (RawGGUF(tensors=(tensor("t", ()),)), "'t' has 0 dimensions"),
    "dimension count": (RawGGUF(tensors=(tensor("t", dim_count=2**31),)), "'t' has 2147483648 dim"),
    "empty axis": (RawGGUF(tensors=(tensor("t", (8, 0)),)), "'t' has shape"),
    "dimension": (RawGGUF(tensors=(tensor("t", (HUGE,)),)), "'t' ends at byte"),
    "product overflowing 64 bits": (
        RawGGUF(tensors=(tensor("t", (2**32, 2**32, 2**32)),)),
        "'t' ends at byte",
    ),
    "row of part blocks": (RawGGUF(tensors=(tensor("t", (40,), 2),)), "Q4_0 blocks of 32"),
    "type": (RawGGUF(tensors=(tensor("t", (256,), 16),)), r"IQ2_XXS \(16\) is not supported"),
    "removed type": (RawGGUF(tensors=(tensor("t", (32,), 4),)), r"unknown tensor type \(4\)"),
    "tensor twice": (
        RawGGUF(tensors=(tensor("t"), tensor("t", offset=32)), data=bytes(64)),
        "'t' appears twice",
    ),
    "tensor name not UTF-8": (RawGGUF(tensors=(tensor(b"\xff"),)), "tensor name .* not UTF-8"),
    "offset outside": (RawGGUF(tensors=(tensor("t", offset=2**63),)), "'t' ends at byte"),
    "offset unaligned": (
        RawGGUF(tensors=(tensor("t", offset=8),), data=bytes(64)),
        "'t' starts at 8",
    ),
    "overlap": (
        RawGGUF(tensors=(tensor("t", (16,)), tensor("u", offset=32)), data=bytes(64)),
        "'t' and 'u' overlap",
    ),
    "same place": (RawGGUF(tensors=(tensor("t"), tensor("u"))), "'t' and 'u' overlap"),
    "alignment not a power of two": (
        RawGGUF(pairs=(pair("general.alignment", I32, struct.pack("<i", 24)),)),
        "alignment is 24",
    ),
    "alignment negative": (
        RawGGUF(pairs=(pair("general.alignment", I32, struct.pack("<i", -32)),)),
        "alignment is -32",
    ),
    "alignment of another type": (
        RawGGUF(pairs=(pair("general.alignment", STRING, text("32")),)),
        "alignment' is '32', not an integer",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_at_once(write: Writer, case: str) -> None:
    raw, message = HOSTILE[case]
    path = write(raw.encode())
    start = time.perf_counter()
    tracemalloc.start()
    try:
        with pytest.raises(GGUFError, match=message) as caught:
            GGUFFile(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert peak < 1 << 20
    assert time.perf_counter() - start < 1


def test_truncation_at_any_byte_is_refused(write: Writer) -> None:
    words = pair("words", ARRAY, array(STRING, 3, text("a") + text("bc") + text("")))
    numbers = pair("numbers", ARRAY, array(F32, 3, bytes(12)))
    raw = RawGGUF(
        pairs=(GOOD, words, numbers), tensors=(tensor("t"), tensor("u", (8, 2), offset=32))
    )
    whole = raw.encode() + bytes(64)
    with GGUFFile(write(whole)) as file:
        assert len(file.tensors) == 2
    for size in range(1, len(whole)):
        with pytest.raises(GGUFError, match=r"model\.gguf"):
            GGUFFile(write(whole[:size]))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_altered_headers_never_raise_anything_else(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    words = pair("words", ARRAY, array(STRING, 3, text("a") + text("bc") + text("")))
    whole = bytearray(RawGGUF(pairs=(GOOD, words)).encode())
    places = st.tuples(st.integers(0, len(whole) - 33), st.integers(0, 255))
    for at, value in data.draw(st.lists(places, min_size=1, max_size=4)):
        whole[at] = value
    path = tmp_path_factory.getbasetemp() / "altered.gguf"
    path.write_bytes(whole)
    try:
        with GGUFFile(path) as file:
            assert all(file.rows(name).nbytes for name in file.tensors)
    except GGUFError as error:
        assert str(path) in str(error)  # noqa: PT017 -- either outcome is right


def test_endless_header_is_refused(tmp_path: Path) -> None:
    """A sparse file may claim any number of empty strings."""
    path = tmp_path / "sparse.gguf"
    claim = pair("k", ARRAY, array(STRING, 2**32, b""))
    with path.open("wb") as file:
        file.write(RawGGUF(pairs=(claim,)).header())
        file.truncate(1 << 36)
    with pytest.raises(GGUFError, match=f"more than {MAX_HEADER_BYTES >> 20} MiB of header"):
        GGUFFile(path)


def test_what_is_no_file_is_refused(tmp_path: Path, write: Writer) -> None:
    with pytest.raises(GGUFError, match="is a directory"):
        GGUFFile(tmp_path)
    with pytest.raises(GGUFError, match="is empty"):
        GGUFFile(write(b""))
    with pytest.raises(GGUFError, match="cannot be read"):
        GGUFFile(tmp_path / "absent.gguf")
