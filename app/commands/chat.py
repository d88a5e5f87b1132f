"""Chat with a model: full screen, or line by line without a terminal."""

import argparse
import sys
from typing import TYPE_CHECKING

from app import options

if TYPE_CHECKING:
    from app.session import Session
    from app.tui.settings import Settings
    from models.chat_template import Message

_SETTABLE = (
    "system",
    "temp",
    "top_p",
    "top_k",
    "min_p",
    "repeat_penalty",
    "seed",
    "max_tokens",
)
_HELP = "/reset forgets the conversation, /stats shows the cache, /quit or Ctrl-D ends."


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's flags."""
    options.add_model(parser)
    parser.add_argument("--system", help="system prompt")
    parser.add_argument("--plain", action="store_true", help="line by line, no full screen")
    parser.add_argument(
        "--continue",
        dest="continue_",
        action="store_true",
        help="go on with the chat that was used last",
    )
    options.add_sampling(parser)
    # What is not given here comes from the settings file.
    parser.set_defaults(**dict.fromkeys(_SETTABLE))
    options.add_cache(parser)


def run(args: argparse.Namespace) -> int:
    """Chat until the user ends it."""
    if args.plain or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return _run_plain(args)
    return _run_full_screen(args)


def _run_full_screen(args: argparse.Namespace) -> int:
    from app.interrupt import exit_on_interrupt
    from app.sessions.schema import StoreError
    from app.sessions.store import SessionStore, default_path
    from app.tui import settings as settings_file
    from app.tui.app import ChatApp
    from app.tui.garbage import collected_at_rest
    from app.tui.live_service import LiveService

    model = options.named_model(args)
    settings = _settings(args)
    notices = []
    try:
        store = SessionStore.open(default_path())
    except StoreError as error:
        notices.append(f"chats are not saved: {error}")
        store = SessionStore.in_memory()
    chat = store.latest() if args.continue_ else None
    if args.continue_ and chat is None:
        notices.append("there is no saved chat yet: this is the first")
    pins_system = args.keep == options.KEEP_SYSTEM
    service = LiveService(
        options.cache_config(args),
        keep_system=settings.system if pins_system else None,
        hot=args.hot,
        force=args.force,
    )
    chat_app = ChatApp(
        service,
        settings=settings,
        stop=tuple(args.stop),
        settings_path=settings_file.default_path(),
        store=store,
        chat=chat,
        model=model or (chat.model if chat else "") or settings.model,
        notices=notices,
    )
    try:
        with collected_at_rest():
            chat_app.run()
    finally:
        store.close()
        exit_on_interrupt()
        service.close()
    return 0


def _settings(args: argparse.Namespace) -> "Settings":
    """The settings file, with the flags that were given put over it."""
    from dataclasses import replace

    from app.tui import settings as settings_file

    settings = settings_file.load(settings_file.default_path())
    given = {name: getattr(args, name) for name in _SETTABLE if getattr(args, name) is not None}
    return replace(settings, **given)


def _run_plain(args: argparse.Namespace) -> int:
    """Read a line, answer it, until the end of input."""
    from app.session import open_session

    settings = _settings(args)
    for name in _SETTABLE:
        setattr(args, name, getattr(settings, name))
    args.seed = None if settings.seed == -1 else settings.seed
    args.model = options.named_model(args) or settings.model or None

    with open_session(args) as session:
        loaded = session.engine.loaded
        print(f"{loaded.name} · window {session.engine.plan.max_tokens} tokens · {_HELP}")
        _converse(args, session)
    return 0


def _converse(args: argparse.Namespace, session: "Session") -> None:
    from models.chat_template import opening

    messages: list[Message] | None = opening(args.system)
    while messages is not None:
        try:
            messages = _handle(args, session, messages, input("> ").strip())
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\nCtrl-D or /quit ends the chat")


def _handle(
    args: argparse.Namespace, session: "Session", messages: "list[Message]", line: str
) -> "list[Message] | None":
    """Do what one line says; returns the conversation from then on, None at its end."""
    from kvcache import EmberError
    from models.chat_template import opening

    if line == "/quit":
        return None
    if line == "/reset":
        return opening(args.system)
    if line == "/stats":
        print(session.engine.stats())
    elif line.startswith("/"):
        print(f"no command {line.split()[0]!r}: {_HELP}")
    elif line:
        try:
            return _turn(args, session, messages, line)
        except EmberError as error:
            print(f"ember: {error} (/reset starts over)", file=sys.stderr)
    return messages


def _turn(
    args: argparse.Namespace, session: "Session", messages: "list[Message]", line: str
) -> "list[Message]":
    """Answer one line; returns the conversation with the question and the answer."""
    from app.console import show
    from app.engine import Request
    from app.interrupt import cancel_on_interrupt
    from app.report import summary
    from models.chat_template import Message, Role

    asked = [*messages, Message(role=Role.USER, content=line)]
    request = Request(
        prompt=session.encode_chat(asked),
        max_tokens=args.max_tokens,
        sampling=options.sampling(args),
        stop=tuple(args.stop),
    )
    with cancel_on_interrupt() as cancel:
        (completion,) = show(session.generate(request, cancel), echo=True)
    print(summary(completion, session.engine), file=sys.stderr)
    return [*asked, Message(role=Role.ASSISTANT, content=completion.text)]
