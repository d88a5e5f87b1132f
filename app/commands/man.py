"""Print the manual page: what all commands say to --help, for `man`."""

import argparse
import re
from collections.abc import Iterator

from app import __version__

_COLOUR = re.compile(r"\x1b\[[\d;]*m")  # of Python 3.14's help


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's flags: none."""


def run(args: argparse.Namespace) -> int:
    """Print roff."""
    print("\n".join(page(args.parser)))
    return 0


def page(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The lines of the page, of a parser and all commands below it."""
    name, about = parser.prog, parser.description or ""
    yield f'.TH {name.upper()} 1 "" "{name} {__version__}" "User Commands"'
    yield from (".SH NAME", rf"{name} \- {_text(about)}")
    yield from (".SH SYNOPSIS", *_usage(parser), ".SH DESCRIPTION")
    yield from _written(parser.epilog)
    yield from (".SH OPTIONS", *_options(parser), ".SH COMMANDS")
    for command, below in _commands(parser):
        yield from (f".SS {_text(command)}", _text(below.description or ""))
        yield from (".PP", *_usage(below), *_options(below), *_written(below.epilog))


def _commands(
    parser: argparse.ArgumentParser,
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Commands with those below them, by what is typed."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                typed = f"{parser.prog} {name}"
                yield typed, below
                yield from _commands(below)


def _usage(parser: argparse.ArgumentParser) -> list[str]:
    said = " ".join(_COLOUR.sub("", parser.format_usage()).split()).removeprefix("usage: ")
    return [f".B {_text(parser.prog)}", _text(said.removeprefix(parser.prog).strip())]


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """What a command takes, but for the commands below it."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) or action.help == argparse.SUPPRESS:
            continue
        yield from (".TP", _taken(action))
        said = (action.help or "") % (vars(action) | {"prog": parser.prog})
        yield _text(said) or r"\&"


def _taken(action: argparse.Action) -> str:
    """A flag and its value, or the name of what stands without a flag."""
    flags = ", ".join(rf"\fB{_text(flag)}\fR" for flag in action.option_strings)
    if action.nargs == 0:
        return flags
    choices = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else ""
    value = rf"\fI{_text(str(action.metavar or choices or action.dest.upper()))}\fR"
    return f"{flags} {value}".strip()


def _written(text: str | None) -> list[str]:
    """Text whose lines stay as they are."""
    lines = [_text(line) for line in (text or "").splitlines()]
    return [".PP", ".nf", *lines, ".fi"] if lines else []


def _text(text: str) -> str:
    """Text that roff obeys nothing of."""
    safe = text.replace("\\", r"\e").replace("-", r"\-").replace("^", r"\(ha").replace("~", r"\(ti")
    return rf"\&{safe}" if safe.startswith((".", "'")) else safe
