"""The manual page says what --help says, in roff that renders without a warning."""

import argparse
import re
import shutil
import subprocess

import pytest

from app import cli
from app.commands.man import page
from tests.app.conftest import Ember
from tests.frozen import _commands

ROFF = shutil.which("groff")


def _plain(roff: str) -> str:
    """What is read, less what lays it out."""
    text = re.sub(r"^\.[A-Za-z]+ ?|\\f[BIR]|\\&", "", roff, flags=re.MULTILINE)
    for escape, said in ((r"\-", "-"), (r"\(ha", "^"), (r"\(ti", "~"), (r"\e", "\\")):
        text = text.replace(escape, said)
    return " ".join(text.split())


def test_the_page_has_every_flag_and_every_help_text(ember: Ember) -> None:
    text = _plain(ember("man").out)
    for name, parser in _commands(cli.parser(), "ember"):
        assert name in text
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                continue
            assert ", ".join(action.option_strings) in text
            assert " ".join((action.help or "").split()) in text


@pytest.mark.skipif(ROFF is None, reason="needs groff")
def test_groff_has_nothing_to_warn_of(ember: Ember) -> None:
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-rCHECKSTYLE=3"],
        input=ember("man").out,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "ember chats resume" in re.sub(r"\x1b\[[\d;]*m|.\x08", "", done.stdout)


def test_what_roff_would_obey_is_text() -> None:
    parser = argparse.ArgumentParser(prog="x", description=".so /etc/passwd", epilog="'br\n\\fB")
    parser.add_argument("--flag", help=".nr 1 2")
    lines = list(page(parser))
    assert r"\&.nr 1 2" in lines
    assert lines[lines.index(".nf") + 1 : lines.index(".fi")] == [r"\&'br", r"\efB"]
