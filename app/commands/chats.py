"""List, search, resume, export and import saved chats."""

import argparse
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app import new_file, options, texts
from app.commands import chat as chat_command
from app.inert import inert_line
from app.streams import print_json
from kvcache.errors import EmberError

if TYPE_CHECKING:
    from app.sessions.store import ChatSummary, SessionStore


_EXAMPLES = """\
ember chats                              # all, the last used first
ember chats search "python decorators"
ember chats resume 12
ember chats export 12 notes.md
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's commands."""
    options.add_examples(parser, _EXAMPLES)
    below = parser.add_subparsers(metavar="WHAT")
    parser.set_defaults(run_chats=_list, search="", json=False)
    listing = below.add_parser("list", help="all chats, the last used first")
    search = below.add_parser("search", help="chats whose title or text has these words")
    search.add_argument("search", type=texts.flag, metavar="TEXT", help="what to look for")
    for each in (listing, search):
        each.add_argument("--json", action="store_true", help="print one JSON object")
        each.set_defaults(run_chats=_list)
    resume = below.add_parser("resume", help="go on with a chat")
    _add_number(resume)
    chat_command.configure(resume)
    resume.set_defaults(run_chats=_resume)
    export = below.add_parser("export", help="write a chat as Markdown, or as JSON")
    _add_number(export)
    export.add_argument(
        "file",
        nargs="?",
        type=Path,
        metavar="FILE",
        help="a new file, JSON where its name ends in .json (default: stdout)",
    )
    export.add_argument("--json", action="store_true", help="JSON, whatever the file's name")
    export.set_defaults(run_chats=_export)
    take = below.add_parser("import", help="add a chat that was exported as JSON")
    take.add_argument("file", type=Path, metavar="FILE", help="what `ember chats export` wrote")
    take.set_defaults(run_chats=_import)


def run(args: argparse.Namespace) -> int:
    """Do what was asked of the saved chats."""
    code: int = args.run_chats(args)
    return code


def _add_number(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("number", type=options.whole(1), metavar="ID", help="of `ember chats`")


def _store() -> "SessionStore":
    from app.console import note
    from app.sessions.store import SessionStore, default_path

    store = SessionStore.open(default_path())
    for text in store.notes:
        note(text)
    return store


def _list(args: argparse.Namespace) -> int:
    from app.model_names import title_of
    from app.sessions.chat import shown_title

    with closing(_store()) as store:
        found = store.chats(args.search)
    if args.json:
        print_json({"chats": [_row(each) for each in found]})
    elif not found:
        print("no chat has that" if args.search else "no chats yet: `ember` begins one")
    for each in () if args.json else found:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(each.updated))
        model = f"  ({inert_line(title_of(each.model))})" if each.model else ""
        print(
            f"{each.id:>5}  {when}  {each.messages:>4} messages  {shown_title(each.title)}{model}"
        )
        if each.snippet:
            print(f"{'':>7}{inert_line(each.snippet)}")
    return 0


def _row(chat: "ChatSummary") -> dict[str, Any]:
    return {
        "id": chat.id,
        "title": chat.title,
        "model": chat.model,
        "updated": chat.updated,
        "messages": chat.messages,
        **({"snippet": chat.snippet} if chat.snippet else {}),
    }


def _resume(args: argparse.Namespace) -> int:
    args.resume = int(args.number)
    return chat_command.run(args)


def _export(args: argparse.Namespace) -> int:
    from app.sessions.export import as_json, as_markdown

    with closing(_store()) as store:
        chat = store.load(int(args.number))
    file: Path | None = args.file
    is_json = args.json or (file is not None and file.suffix == ".json")
    text = as_json(chat) if is_json else as_markdown(chat)
    if file is None:
        print(text, end="")
        return 0
    new_file.write(file, text)
    print(f"written to {inert_line(str(file))}")
    return 0


def _import(args: argparse.Namespace) -> int:
    from app.sessions.export import from_json

    chat = from_json(texts.read_file(args.file, "the exported chat"))
    if not chat.messages:
        raise EmberError(f"{args.file} has no messages: nothing to import")
    with closing(_store()) as store:
        store.save(chat)
    print(f"imported as chat {chat.id}: ember chats resume {chat.id} goes on with it")
    return 0
