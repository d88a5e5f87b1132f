"""The command line: which command runs, and how its errors are shown.

Commands import MLX and the rest only when they run, so that --help is instant.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from app import __version__, texts
from app.commands import (
    bench,
    calibrate,
    chat,
    chats,
    completion,
    doctor,
    inspect,
    ls,
    man,
    perplexity,
    pull,
    rm,
    search,
    serve,
    tokenize,
)
from app.commands import run as run_command
from app.flag_words import with_flags
from app.inert import inert_line
from app.options import UsageError
from app.ranks.launch import Launch, launch
from app.streams import OutputError, drop_output
from kvcache.errors import EmberError

_COMMANDS = {
    "chat": chat,
    "chats": chats,
    "run": run_command,
    "serve": serve,
    "bench": bench,
    "ls": ls,
    "search": search,
    "pull": pull,
    "rm": rm,
    "inspect": inspect,
    "tokenize": tokenize,
    "perplexity": perplexity,
    "calibrate": calibrate,
    "doctor": doctor,
    "completion": completion,
    "man": man,
}
_EPILOG = """\
python -m app [MODEL] [PROMPT] is short for chat, and for run when stdin is not a terminal.
Exit codes: 0 ok, 1 the run failed, 2 bad usage, 130 interrupted, 129 hung up, 143 killed,
141 nobody reads stdout.
"""


# As shells count programs that SIGINT and SIGPIPE end.
_INTERRUPTED, _UNREAD = 130, 141
_USAGE = 2
# Flags that mean a chat, though stdin is no terminal.
_CHATS = {"--plain", "--continue", "--resume"}


class _Parser(argparse.ArgumentParser):
    """Says a usage error in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(_USAGE, f"{self.prog}: error: {inert_line(message)} (see {self.prog} --help)\n")


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code. Every user's mistake ends as one line here."""
    try:
        code = _run(list(arguments))
        sys.stdout.flush()
    except OutputError as error:
        drop_output()
        return _failed(error)
    except UsageError as error:
        _failed(error)
        return _USAGE
    except EmberError as error:
        return _failed(error)
    except KeyboardInterrupt as stop:
        # What the work that was stopped has to say: how much of a download is kept.
        said = "".join(f"; {each}" for each in getattr(stop, "__notes__", ()))
        print(f"ember: interrupted{inert_line(said)}", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has gone; nothing is left to say, not even at exit.
        drop_output()
        return _UNREAD
    return code


def _failed(error: EmberError) -> int:
    print(f"ember: {_rank()}error: {inert_line(with_flags(error))}", file=sys.stderr)
    return 1


def _rank() -> str:
    """Which of several ranks speaks, where it is not the first, whose user everybody is."""
    rank = os.environ.get("MLX_RANK", "0")
    return "" if rank == "0" else f"rank {inert_line(rank)}: "


def _run(arguments: list[str]) -> int:
    try:
        args = _parsed(_with_command(arguments))
    except SystemExit as ended:  # argparse has said what there is to say
        return int(ended.code or 0)
    if args.run is not bench.run:  # which measures what numpy multiplies
        # Its threads are not needed, and spin for a tenth of a second as they begin.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    launched = launch()
    if launched is None:
        code: int = args.run(args)
        return code
    return _run_with_others(args, launched)


def _run_with_others(args: argparse.Namespace, launched: Launch) -> int:
    """As one of several processes that `mlx.launch` has started."""
    if args.run not in (run_command.run, chat.run, serve.run):
        if launched.leads:
            raise UsageError(
                "run, chat and serve alone use several ranks: start it without mlx.launch"
            )
        return 0
    if not launched.leads:
        # Ctrl-C reaches all of a terminal's processes, and is for the first to hear.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    from app.ranks.company import Company
    from app.ranks.following import follow

    args.company = company = Company(launched)
    if not launched.leads:
        follow(company)
    try:
        code: int = args.run(args)
        return code
    finally:
        company.leave()


def _parsed(arguments: list[str]) -> argparse.Namespace:
    """What was typed; argparse leaves over the words of a prompt that follow a flag."""
    top = parser()
    args, left = top.parse_known_args(arguments)
    takes_words = args.run in (chat.run, run_command.run)
    if left and (not takes_words or any(map(_is_flag, left))):
        top.error(f"unrecognized arguments: {' '.join(left)}")
    if left:
        args.words += [texts.typed(each) for each in left]
    return args


def _is_flag(text: str) -> bool:
    """Whether argparse takes a text for a flag that it does not know."""
    return text.startswith("-") and text != "-" and " " not in text


def parser() -> argparse.ArgumentParser:
    """All commands with their flags."""
    top = _Parser(
        prog="ember",
        description="Chat with GGUF models on MLX in fixed, visible memory.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"ember {__version__}")
    # For commands that tell of all commands, and for those that several ranks run.
    top.set_defaults(parser=top, company=None)
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    for name, module in _COMMANDS.items():
        summary = (module.__doc__ or "").strip().splitlines()[0]
        command = commands.add_parser(name, help=summary, description=summary)
        module.configure(command)
        command.set_defaults(run=module.run)
    return top


def _with_command(arguments: list[str]) -> list[str]:
    """Put in the command that a bare `python -m app [MODEL] [PROMPT]` means."""
    first = arguments[0] if arguments else None
    if first in _COMMANDS or first in ("-h", "--help", "--version"):
        return arguments
    chats = sys.stdin.isatty() or any(each.split("=")[0] in _CHATS for each in arguments)
    return ["chat" if chats else "run", *arguments]
