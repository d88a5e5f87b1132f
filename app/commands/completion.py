"""Print a script that completes commands, flags, models and chats in a shell."""

import argparse
from collections.abc import Callable, Iterable, Iterator

_SHELLS = ("bash", "zsh", "fish", "tcsh")
_ASK = "ember completion --list"
# What stands for values of one kind in help texts.
_FILES = ("FILE", "FILE|NAME", "A.json", "B.json")
_CODECS = ("K[/V]", "K[/V]|BITS")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's flags."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "shell", nargs="?", choices=_SHELLS, metavar="SHELL", help="bash, zsh, fish or tcsh"
    )
    what.add_argument(
        "--list", dest="names", choices=[*_NAMES], help="only names, a line each, as scripts ask"
    )


def run(args: argparse.Namespace) -> int:
    """Print the script, or the names that it asks for."""
    if args.names is None:
        print(_script(args.parser, args.shell))
        return 0
    for name in _NAMES[args.names]():
        print(name)
    return 0


def _script(parser: argparse.ArgumentParser, shell: str) -> str:
    import shtab

    from kvcache import CODECS

    completed = {
        "MODEL": shtab.cmd(f"{_ASK} models"),
        "ID": shtab.cmd(f"{_ASK} chats"),
        "DIR": shtab.DIRECTORY,
        **dict.fromkeys(_FILES, shtab.FILE),
    }
    for action in _actions(parser):
        if action.metavar in completed:
            action.complete = completed[action.metavar]  # type: ignore[attr-defined]
        elif action.metavar in _CODECS:
            action.choices = CODECS
    return str(shtab.complete(parser, shell))


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """What a command takes, and those below it."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _actions(below)
        else:
            yield action


def _models() -> Iterable[str]:
    from app.model_names import typed_names

    return typed_names()


def _chats() -> Iterable[str]:
    from contextlib import closing

    from app.sessions.store import SessionStore, default_path

    if not default_path().exists():
        return []
    with closing(SessionStore.open(default_path())) as store:
        return [str(each.id) for each in store.chats("")]


_NAMES: dict[str, Callable[[], Iterable[str]]] = {"models": _models, "chats": _chats}
