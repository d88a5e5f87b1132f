"""Bytes of a terminal to events."""

import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from textual import constants, events
from textual.message import Message

from app.inert import inert
from app.tui.terminal.terminal_input import TerminalInput

BEGIN, END = b"\x1b[200~", b"\x1b[201~"


def told(*chunks: bytes) -> list[Message]:
    source = TerminalInput()
    return [event for chunk in chunks for event in source.feed(chunk)]


def shown(happened: list[Message]) -> list[str]:
    """Keys by name, pastes by their text."""
    return [
        event.key if isinstance(event, events.Key) else f"paste:{event.text}"
        for event in happened
        if isinstance(event, events.Key | events.Paste)
    ]


def test_a_paste_with_escapes_is_text_and_no_keys() -> None:
    pasted = "red \x1b[31m\x1b text\r/quit\r\x1bOP\x00"
    stream = b"a" + BEGIN + pasted.encode() + END + b"b\r"
    assert shown(told(stream)) == [
        "a",
        "paste:red ␛[31m␛ text\n/quit\n␛OP␀",
        "b",
        "enter",
    ]


def test_an_end_within_a_paste_does_not_end_it() -> None:
    stream = BEGIN + b"one" + END + b"/quit\r" + END + b"x"
    assert shown(told(stream)) == ["paste:one␛[201~/quit\n", "x"]


def test_two_pastes_are_two() -> None:
    stream = BEGIN + b"one" + END + b"x" + BEGIN + b"two" + BEGIN + END
    assert shown(told(stream)) == ["paste:one", "x", "paste:two␛[200~"]


@pytest.mark.parametrize("key", [b"\x03", b"\x1b[99;5u"])
def test_a_paste_whose_end_is_lost_is_ended_by_hand(
    key: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    source = TerminalInput()
    assert shown([*source.feed(BEGIN + b"one"), *source.feed(key)]) == []  # too soon for a hand
    now = 1.1
    happened = shown([*source.feed(key), *source.feed(b"x")])
    assert happened == [f"paste:{inert('one' + key.decode())}", "x"]


def test_a_paste_that_stalls_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    source = TerminalInput()
    assert shown(list(source.feed(BEGIN + b"one"))) == []
    now = 5.0
    assert shown(list(source.feed(b" two" + END + b"x"))) == ["paste:one two", "x"]


def test_an_end_that_a_slow_line_tears_ends_a_paste(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    source, happened = TerminalInput(), list[Message]()
    for chunk in (BEGIN + b"one", END[:1], END[1:] + b"x"):
        happened += source.feed(chunk)
        now += 5.0
    assert shown(happened) == ["paste:one", "x"]


def test_what_has_come_of_a_paste_is_kept_where_nothing_more_is_read() -> None:
    source = TerminalInput()
    happened = [*source.feed(b"a" + BEGIN + b"one \x1b[20"), *source.leave(), *source.leave()]
    assert shown(happened) == ["a", "paste:one ␛[20"]


@given(cuts=st.sets(st.integers(0, 60), max_size=8))
@settings(max_examples=40)
def test_it_does_not_matter_how_the_bytes_arrive(cuts: set[int]) -> None:
    stream = b"k\x1b[A" + BEGIN + "ä\x1b\x1b[2J€".encode() + END + b"q" + BEGIN + b"two" + END
    places = [0, *sorted(cuts), len(stream)]
    chunks = [stream[start:end] for start, end in pairwise(places)]
    assert shown(told(*chunks)) == ["k", "up", "paste:ä␛␛[2J€", "q", "paste:two"]


def test_many_letters_at_once_are_an_unmarked_paste() -> None:
    word = "w" * 1500
    assert shown(told(f"a\r{word}\r\x1b[A".encode())) == [
        *("a", "enter", "paste:" + "w" * 1000, "paste:" + "w" * 500, "enter", "up"),
    ]


def test_bytes_that_are_not_utf8_are_dropped() -> None:
    assert shown(told(b"a\xff\xfe\x80b", b"\xc3", b"\xa4")) == ["a", "b", "ä"]


def test_a_lone_escape_is_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ESCAPE_DELAY", 0.0)
    source = TerminalInput()
    assert shown(list(source.feed(b"\x1b"))) == []
    time.sleep(0.001)
    assert shown(list(source.tick())) == ["escape"]


def test_a_megabyte_of_escapes_takes_no_minutes() -> None:
    pasted = b"\x1b[31mred\x1b[0m " * 60_000
    chunks = [BEGIN, *(pasted[at : at + 4095] for at in range(0, len(pasted), 4095)), END]
    (text,) = shown(told(*chunks))
    assert text == "paste:" + pasted.decode().replace("\x1b", "␛")
