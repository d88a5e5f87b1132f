"""Every number that a flag or a setting allows works at its edges, or is one line."""

import argparse
import io
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app import cache_flags, cli, options
from app.chat.settings import Settings
from kvcache.errors import EmberError

HUGE = 10**20
MOST = 2**31 - 1
# What a text or a window may be too short for; all else has to work.
FITTED = {"--hot", "--sinks", "--block", "--keep", "--ctx", "--skip", "--tokens"}
# Every letter that the tiny model knows: an answer of any allowed length ends at once.
STOPS = [part for letter in "aeioubcdfghjklmnprstvwz" for part in ("--stop", letter)]
BASE = {
    "run": ["run", "--raw", "--prompt", "ba ce di", "--max-tokens", "3"],
    "chat": ["chat", "--plain", "--max-tokens", "3"],
    "perplexity": ["perplexity", "TEXT", "--tokens", "24", "--skip", "2"],
}


def numeric_flags(command: str) -> Iterator[tuple[str, options.Bounded]]:
    """The flags of a command that take one number, with their bounds."""
    (commands,) = (
        action for action in cli.parser()._actions if isinstance(action, argparse._SubParsersAction)
    )
    for action in commands.choices[command]._actions:
        # A saved chat's number, which is there or not: tests/app/test_chats.py.
        if isinstance(action.type, options.Bounded) and action.dest != "resume":
            yield action.option_strings[-1], action.type
        elif action.type is cache_flags.keep:
            yield action.option_strings[-1], options.tokens(0)


def edges() -> Iterator[tuple[str, str, str]]:
    for command in BASE:
        for flag, bounds in numeric_flags(command):
            yield command, flag, str(bounds.low)
            # Windows of any size are planned for elsewhere.
            if flag != "--ctx":
                yield command, flag, str(HUGE if bounds.high == math.inf else bounds.high)


def outside() -> Iterator[tuple[str, str, str]]:
    for command in BASE:
        for flag, bounds in numeric_flags(command):
            for value in (bounds.low - 1, math.nan, "x", "9" * 5000, "1e999", ""):
                yield command, flag, str(value)
            if bounds.high < math.inf:
                yield command, flag, str(bounds.high + 1)


def test_all_numbers_are_walked() -> None:
    flags = {flag for command in BASE for flag, _ in numeric_flags(command)}
    sampling = {"--temp", "--top-p", "--top-k", "--min-p", "--repeat-penalty", "--seed"}
    assert flags == FITTED | sampling | {"--max-tokens", "--think-budget"}


@pytest.mark.parametrize(("command", "flag", "value"), list(edges()))
def test_an_edge_works_or_is_one_line(
    command: str,
    flag: str,
    value: str,
    tiny_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("ba ce\n/quit\n"))
    text = tmp_path / "text.txt"
    text.write_text("ba ce di fo gu " * 8)
    given = [str(text) if argument == "TEXT" else argument for argument in BASE[command]]
    drawn = [] if command == "perplexity" or flag == "--temp" else ["--temp", "0.8"]
    stops = STOPS if flag == "--max-tokens" else []
    code = cli.run([*given, *drawn, "-m", str(tiny_path), flag, value, *stops])
    out, err = capsys.readouterr()
    if flag in FITTED and code:
        assert code == 1
        assert out == ""
        (line,) = err.splitlines()
        assert line.startswith("ember: error: ")
    else:
        assert code == 0
        assert "\n" in out
        assert command == "perplexity" or "answer" in err


@pytest.mark.parametrize(("command", "flag", "value"), list(outside()))
def test_beyond_an_edge_is_one_short_usage_line(
    command: str, flag: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([*BASE[command], f"{flag}={value}"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert f"argument {flag}" in line
    assert len(line) < 250


def test_an_empty_stop_text_stops_nothing(
    tiny_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags in ([], ["--stop", ""]):
        assert cli.run([*BASE["run"], "-m", str(tiny_path), *flags]) == 0
        assert "answer 3 tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "allowed", "refused"),
    [
        ("temp", ["0", "100", "1e-300"], ["-1", "101", "nan", "inf", "x"]),
        ("top_p", ["1e-9", "1"], ["0", "1.1", "nan"]),
        ("top_k", ["0", str(MOST)], ["-1", "0.5", str(HUGE)]),
        ("min_p", ["0", "1"], ["-0.1", "1.1"]),
        ("repeat_penalty", ["0.01", "10"], ["0", "10.1"]),
        ("seed", ["-1", "0", str(2**64 - 1)], ["-2", str(2**64), "9" * 4000, "x"]),
        ("max_tokens", ["1", str(MOST)], ["0", "-1", str(HUGE), "9" * 5000]),
    ],
)
def test_settings_take_the_same_numbers(name: str, allowed: list[str], refused: list[str]) -> None:
    kind = int if name in ("top_k", "seed", "max_tokens") else float
    for text in allowed:
        value = getattr(Settings().with_text(name, text), name)
        assert (value, type(value)) == (kind(text), kind)
    for text in refused:
        with pytest.raises(EmberError, match=r"^got .*expected") as caught:
            Settings().with_text(name, text)
        assert len(str(caught.value)) < 250
