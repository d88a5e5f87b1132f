"""Causes and values, as messages tell them."""

import ast
import errno
import os
import re
from pathlib import Path

import pytest

import kvcache
from kvcache.errors import quoted, reason, short

ROOT = Path(kvcache.__file__).parents[1]
SOURCES = [path for name in ("app", "models", "kvcache") for path in (ROOT / name).rglob("*.py")]


@pytest.mark.parametrize("value", ["x" * 907, "'" * 907, b"\xff" * 907, ["x"] * 907, "x" * 57])
def test_what_is_quoted_is_closed(value: object) -> None:
    shown = quoted(value)
    assert len(shown) <= 60
    assert (shown[0], shown[-1]) == (repr(value)[0], repr(value)[-1])
    assert ("..." in shown) == (len(repr(value)) > 60)


def test_a_long_text_keeps_both_its_ends() -> None:
    assert short("folder/" * 40 + "file.gguf", 30) == "folder/folder/fol.../file.gguf"
    assert short("file.gguf") == "file.gguf"


def test_a_reason_has_no_number_and_no_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        (tmp_path / "absent").open()
    assert reason(caught.value) == os.strerror(errno.ENOENT)
    assert reason(OSError("no number")) == reason(ValueError("no number")) == "no number"


def test_no_message_cuts_a_quote() -> None:
    """A precision cuts what it is given, quotes included."""
    cutting = re.compile(r"!r:\.\d|\[:\d+\]!r|repr\([^)]*\)\[:")
    found = [str(path) for path in SOURCES if cutting.search(path.read_text(encoding="utf-8"))]
    assert found == []


def test_no_message_has_an_errors_number_and_path() -> None:
    """Of what may be an OSError, messages tell the reason."""
    offenders = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler) and node.name and "OSError" in _caught(node):
                offenders += [f"{path}:{at.lineno}" for at in _told_whole(node)]
    assert offenders == []


def _caught(handler: ast.ExceptHandler) -> str:
    return ast.unparse(handler.type) if handler.type else ""


def _told_whole(handler: ast.ExceptHandler) -> list[ast.FormattedValue]:
    """Where the error itself is put into a text."""
    return [
        node
        for node in ast.walk(handler)
        if isinstance(node, ast.FormattedValue)
        and isinstance(node.value, ast.Name)
        and node.value.id == handler.name
    ]
