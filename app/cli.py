"""The command line: which command runs, and how its errors are shown.

Commands import MLX and the rest only when they run, so that --help is instant.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from app import __version__
from app.commands import bench, chat, doctor, inspect, ls, perplexity, pull, rm, tokenize
from app.commands import run as run_command
from kvcache.errors import EmberError

_COMMANDS = {
    "chat": chat,
    "run": run_command,
    "bench": bench,
    "ls": ls,
    "pull": pull,
    "rm": rm,
    "inspect": inspect,
    "tokenize": tokenize,
    "perplexity": perplexity,
    "doctor": doctor,
}
_EPILOG = """\
python -m app [MODEL] is short for chat, and for run when stdin is not a terminal.
Exit codes: 0 ok, 1 the run failed, 2 bad usage, 130 interrupted, 129 hung up, 143 killed.
"""


class _Parser(argparse.ArgumentParser):
    """Says a usage error in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code. Every user's mistake ends as one line here."""
    args = _parser().parse_args(_with_command(list(arguments)))
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except EmberError as error:
        print(f"ember: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ember: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (head, less) has gone; nothing is left to say, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="ember",
        description="Chat with Llama-family GGUF models on MLX in fixed, visible memory.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ember {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, module in _COMMANDS.items():
        summary = (module.__doc__ or "").strip().splitlines()[0]
        command = commands.add_parser(name, help=summary, description=summary)
        module.configure(command)
        command.set_defaults(run=module.run)
    return parser


def _with_command(arguments: list[str]) -> list[str]:
    """Put in the command that a bare `python -m app [MODEL]` means."""
    first = arguments[0] if arguments else None
    if first in _COMMANDS or first in ("-h", "--help", "--version"):
        return arguments
    return ["chat" if sys.stdin.isatty() else "run", *arguments]
