import io
import os
import sys
from argparse import ArgumentTypeError
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import texts
from kvcache.errors import EmberError

# What Python's own `splitlines` takes for a line's end, and prompts may contain.
_WITHIN = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\r"


@given(st.lists(st.text(st.sampled_from("ab é" + _WITHIN), max_size=6), max_size=6), st.booleans())
def test_a_line_is_what_ends_in_a_line_feed(written: list[str], windows: bool) -> None:
    written = [line.rstrip("\r") for line in written]
    text = ("\r\n" if windows else "\n").join([*written, ""])
    assert texts.lines(texts.typed(text)) == [line for line in written if line.strip()]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\xef\xbb\xbfone\r\ntwo\n", "one\ntwo\n"),
        (b"one\rtwo\x0b\x0c\x85".replace(b"\x85", b"\xc2\x85"), "one\rtwo\x0b\x0c\x85"),
        ("a\ufeffb\u2028c".encode(), "a\ufeffb\u2028c"),
        (b"", ""),
    ],
)
def test_a_file_s_text_is_its_own(
    data: bytes, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    assert texts.read_file(path, "the text") == text
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(path.open("rb"), "utf-8", newline="\n"))
    assert texts.read_stdin() == text


def test_a_pipe_is_read_as_a_file_is(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"one\n")
    os.close(writing)
    assert texts.read_file(Path(f"/dev/fd/{reading}"), "the text") == "one\n"
    os.close(reading)


def test_what_is_no_text_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for data, said in (
        (b"ab\xff", r"the text .*file is no text file \(UTF-8; byte 3: invalid start byte\)"),
        ("für".encode("utf-16"), "no text file"),
        (b"a\0b", r"byte 2: a zero byte"),
        (b"abcdefghij", r"more than 0 MiB: give a part of it"),
    ):
        path.write_bytes(data)
        with pytest.raises(EmberError, match=said):
            texts.read_file(path, "the text", most=9)
    for other, said in (
        (tmp_path, "Is a directory"),
        (tmp_path / "none", "No such file"),
        (Path("a\0b"), "null byte"),
        (Path("/dev/zero"), "more than"),
    ):
        with pytest.raises(EmberError, match=f"(cannot read )?the text .*{said}"):
            texts.read_file(other, "the text", most=9)


def test_flags_that_are_no_text_are_refused() -> None:
    assert texts.flag("größer") == "größer"
    with pytest.raises(ArgumentTypeError, match=r"got 'a\\xff', expected text in UTF-8"):
        texts.flag("a\udcff")
    with pytest.raises(EmberError, match=r"got 'a\\x00b', expected text without zero bytes"):
        texts.typed("a\0b")


def test_a_long_stdin_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "MOST_BYTES", 5)
    monkeypatch.setattr(sys, "stdin", io.StringIO("abcdef"))
    with pytest.raises(EmberError, match="stdin has more than 0 MiB"):
        texts.read_stdin()
