"""Headers that are damaged or hostile: each one clear error, quickly, in little memory."""

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.errors import GGUFError
from models.gguf.file import GGUFFile
from models.gguf.header import MAX_HEADER_BYTES, read_leading_metadata
from tests.models.gguf.raw_gguf import (
    ARRAY,
    BOOL,
    F32,
    I32,
    STRING,
    U8,
    RawGGUF,
    Writer,
    array,
    pair,
    tensor,
)
from tests.models.gguf.raw_gguf import string as text
from tests.patience import within

HUGE = 2**63 + 3


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
    "key twice": (RawGGUF(pairs=(GOOD, GOOD)), "'general.architecture' appears twice"),
    "value type": (RawGGUF(pairs=(pair("k", 13, bytes(8)),)), "'k' has the unknown value type 13"),
    "string length": (
        RawGGUF(pairs=(pair("k", STRING, struct.pack("<Q", HUGE)),)),
        "'k' at byte .* claims",
    ),
    "string length past the end": (
        RawGGUF(pairs=(pair("k", STRING, struct.pack("<Q", 5000)),)),
        "'k' at byte .* reaches past the end",
    ),
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
    "type": (RawGGUF(tensors=(tensor("t", (256,), 19),)), r"IQ1_S \(19\) is not supported"),
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
    "alignment of one byte": (
        RawGGUF(pairs=(pair("general.alignment", I32, struct.pack("<i", 1)),)),
        "alignment is 1, expected a power of two from 8",
    ),
    "alignment negative": (
        RawGGUF(pairs=(pair("general.alignment", I32, struct.pack("<i", -32)),)),
        "alignment is -32",
    ),
    "alignment of another type": (
        RawGGUF(pairs=(pair("general.alignment", STRING, text("32")),)),
        "alignment is '32', expected an integer",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_at_once(write: Writer, case: str) -> None:
    raw, message = HOSTILE[case]
    path = write(raw.encode())
    tracemalloc.start()
    try:
        with within(1), pytest.raises(GGUFError, match=message) as caught:
            GGUFFile(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert peak < 1 << 20


def test_text_that_is_not_utf8_is_read_and_said(write: Writer) -> None:
    values = array(STRING, 3, text("a") + text(b"\xc3") + text(b"\xed\xb3\x83"))
    raw = RawGGUF(
        pairs=(
            pair("name", STRING, text(b"caf\xe9")),
            pair(b"k\xff", STRING, text("v")),
            pair(b"k\xfe", STRING, text("w")),
            pair("words", ARRAY, values),
        )
    )
    with GGUFFile(write(raw.encode())) as file:
        assert file.metadata["name"] == "caf\ufffd"
        assert (file.metadata[r"k\xff"], file.metadata[r"k\xfe"]) == ("v", "w")
        words = file.metadata.get_strings("words")
        kept = [word.encode(errors="surrogateescape") for word in words]
        assert kept == [b"a", b"\xc3", b"\xed\xb3\x83"]
        assert file.notes == (
            "metadata 'name' and 2 more: not UTF-8, the bytes that are not are replaced",
        )


def test_any_number_but_zero_is_true_and_said(write: Writer) -> None:
    flags = pair("flags", ARRAY, array(BOOL, 3, b"\0\1\xff"))
    raw = RawGGUF(pairs=(pair("k", BOOL, b"\2"), flags))
    with GGUFFile(write(raw.encode())) as file:
        assert file.metadata["k"] is True
        assert np.asarray(file.metadata["flags"]).tolist() == [False, True, True]
        (note,) = file.notes
        assert note.startswith("metadata 'k' and 1 more: not a boolean")


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


def test_of_a_beginning_the_pairs_are_read_that_it_holds() -> None:
    words = pair("words", ARRAY, array(STRING, 3, text("a") + text("bc") + text("")))
    whole = RawGGUF(pairs=(GOOD, words), tensors=(tensor("t"),)).encode()
    found = [
        list(read_leading_metadata(memoryview(whole[:size]), len(whole)))
        for size in range(len(whole) + 1)
    ]
    assert found == sorted(found, key=len)
    assert (found[24], found[24 + len(GOOD)], found[-1]) == (
        [],
        ["general.architecture"],
        ["general.architecture", "words"],
    )
    with pytest.raises(GGUFError, match="does not start with"):
        read_leading_metadata(memoryview(b"<html>"), 100)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
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
            assert all(file.tensor(name).data.nbytes for name in file.tensors)
    except GGUFError as error:
        assert str(path) in str(error)  # noqa: PT017 -- either outcome is right


def test_endless_header_is_refused(tmp_path: Path) -> None:
    """A sparse file may claim any number of empty strings."""
    path = tmp_path / "sparse.gguf"
    claim = pair("k", ARRAY, array(STRING, 2**32, b""))
    with path.open("wb") as file:
        file.write(RawGGUF(pairs=(claim,)).header())
        file.truncate(1 << 36)
    with pytest.raises(GGUFError, match=f"the {MAX_HEADER_BYTES >> 20} MiB ember reads"):
        GGUFFile(path)
