"""Chat with a model: full screen, or line by line without a terminal."""

import argparse
import sys
from typing import TYPE_CHECKING

from app import options, texts
from app.flag_words import with_flags
from app.inert import inert_line
from app.streams import OutputError
from kvcache.errors import EmberError, reason

if TYPE_CHECKING:
    from app.session import Session
    from app.sessions.chat import Chat
    from app.sessions.store import SessionStore
    from app.tui.app import ChatApp
    from app.tui.settings import Settings
    from app.wake.waking import Waking
    from models.text.messages import Message

_SETTABLE = (
    "system",
    "temp",
    "top_p",
    "top_k",
    "min_p",
    "repeat_penalty",
    "seed",
    "max_tokens",
    "allow_loops",
    "think_budget",
    "lookup",
    "cache_store",
    "kv",
    "ctx",
    "hot",
    "keep",
)
_END_SECONDS = 8.0
_HELP = "/reset forgets the conversation, /stats shows the cache, /quit or Ctrl-D ends."


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's flags."""
    options.add_model(parser)
    options.add_chat_template(parser)
    parser.add_argument("--system", type=texts.flag, help="system prompt")
    parser.add_argument("--plain", action="store_true", help="line by line, no full screen")
    parser.add_argument(
        "--continue",
        dest="continue_",
        action="store_true",
        help="go on with the chat that was used last",
    )
    parser.add_argument(
        "--resume",
        type=options.whole(1),
        metavar="ID",
        help="go on with this chat; `ember chats` lists them",
    )
    options.add_sampling(parser, by_model=True)
    options.add_thinking(parser)
    options.add_cache(parser)
    options.add_cache_store(parser)
    # What is not given here comes from the settings file.
    parser.set_defaults(**dict.fromkeys(_SETTABLE))


def run(args: argparse.Namespace) -> int:
    """Chat until the user ends it."""
    # The screen is drawn on stderr.
    if args.resume is not None and args.continue_:
        raise options.UsageError("got --resume and --continue: give one")
    if args.plain or not all(one.isatty() for one in (sys.stdin, sys.stdout, sys.stderr)):
        if args.resume is not None:
            raise options.UsageError("a chat is resumed on the full screen: give it a terminal")
        return _run_plain(args)
    return _run_full_screen(args)


def _run_full_screen(args: argparse.Namespace) -> int:
    from app.sessions.schema import StoreError
    from app.sessions.store import SessionStore, default_path
    from app.tui import personas
    from app.tui import settings as settings_file
    from app.tui.app import ChatApp
    from app.tui.service.live_service import LiveService

    model = options.named_model(args)
    settings, notices = _settings(args)
    try:
        store = SessionStore.open(default_path())
    except StoreError as error:
        store = SessionStore.in_memory([f"{error}; the chats of this run are not saved"])
    notices += store.notes
    chat = _saved_chat(args, store, notices)
    hot = args.hot
    pins_system = settings.keep == options.KEEP_SYSTEM
    _take_cache(args, settings)
    service = LiveService(
        options.cache_config(args),
        keep_system=settings.system if pins_system else None,
        hot=hot,
        load=options.load_options(args),
        waking=_waking(settings, args.sleep),
    )
    chat_app = ChatApp(
        service,
        settings=settings,
        stop=tuple(args.stop),
        settings_path=settings_file.default_path(),
        personas_path=personas.default_path(),
        store=store,
        chat=chat,
        model=model or (chat.model if chat else "") or settings.model,
        notices=notices,
    )
    return _until_left(chat_app)


def _waking(settings: "Settings", asleep: str | None) -> "Waking | None":
    """What keeps encoded chats on disk, unless the user wants none."""
    from app.wake.folder import PieceFolder, default_folder
    from app.wake.waking import Waking

    most = settings.cache_store_bytes()
    if not most:
        return None
    sleeping = None if asleep is None else options.bytes_or_none(asleep)
    return Waking(PieceFolder(default_folder(), most, asleep=sleeping))


def _saved_chat(
    args: argparse.Namespace, store: "SessionStore", notices: list[str]
) -> "Chat | None":
    """The chat that is asked for. Raises StoreError where there is none of that number."""
    if args.resume is not None:
        return store.load(int(args.resume))
    return _last_chat(store, notices) if args.continue_ else None


def _last_chat(store: "SessionStore", notices: list[str]) -> "Chat | None":
    """The chat that was used last; where there is none, a notice says so."""
    from app.sessions.schema import StoreError

    try:
        chat = store.latest()
    except StoreError as error:
        notices.append(str(error))
        return None
    if chat is None:
        notices.append("there is no saved chat yet: this is the first")
    return chat


def _until_left(chat_app: "ChatApp") -> int:
    """Run the chat, then save and close all that is its; returns the exit code."""
    from app.console import note
    from app.interrupt import end_within, ignore_signals, leaving_on_signal
    from app.tui.terminal.garbage import collected_at_rest

    chat = chat_app.chat
    try:
        with collected_at_rest(), leaving_on_signal(chat_app.leave):
            chat_app.run()
    finally:
        # Ctrl-C, a kill and what is stuck change nothing now: the chat is saved, the rest ends.
        ignore_signals()
        code = chat_app.return_code or 0
        end_within(_END_SECONDS, code)
        failure = chat.close()
        number, title = chat.chat.id, chat.chat.title
        kept = number is not None and chat.store.is_kept
        chat.store.close()
        chat.service.close()
    if failure is not None:
        note(f"{failure}; the end of the chat is not saved")
    elif kept and not code:
        note(f"`ember chats resume {number}` goes on with “{title}”")
    return code


def _settings(args: argparse.Namespace) -> "tuple[Settings, list[str]]":
    """The settings file, with the flags that were given put over it; what is to be said of it."""
    from dataclasses import replace

    from app.tui import settings as settings_file

    settings, notices = settings_file.load(settings_file.default_path())
    given = {name: getattr(args, name) for name in _SETTABLE if getattr(args, name) is not None}
    if args.keep is not None:
        given["keep"] = str(args.keep)
    if args.kv_budget is not None:
        # The two exclude each other, and a flag goes before the file.
        given["ctx"] = 0
    match args.think:
        case options.Think.OFF:
            given |= {"think": "off"}
        case options.Think.SHOW | options.Think.HIDE:
            given |= {"show_thinking": args.think == options.Think.SHOW}
    return replace(settings, **given), notices


def _take_cache(args: argparse.Namespace, settings: "Settings") -> None:
    """Have the flags of the cache say what the settings do."""
    args.kv, args.ctx, args.hot = settings.kv, settings.ctx or None, settings.hot
    is_system = settings.keep == options.KEEP_SYSTEM
    args.keep = settings.keep if is_system else int(settings.keep)


def _run_plain(args: argparse.Namespace) -> int:
    """Read a line, answer it, until the end of input."""
    from app.console import note
    from app.session import open_session
    from app.tui import settings as settings_file

    settings, notices = _settings(args)
    for text in notices:
        note(text)
    for name in _SETTABLE:
        setattr(args, name, getattr(settings, name))
    _take_cache(args, settings)
    args.seed = None if settings.seed == -1 else settings.seed
    args.model = options.named_model(args) or settings.model or None

    with open_session(args, think=settings_file.THINK[settings.think]) as session:
        loaded = session.engine.loaded
        recommended = loaded.sampling.recommended(
            session.think, thinks=session.chat.thinks, has_switch=session.chat.has_switch
        )
        for name, value in (recommended.values | settings.own_sampling()).items():
            setattr(args, name, value)
        print(
            f"{inert_line(loaded.name)} · window {session.engine.plan.max_tokens} tokens · {_HELP}"
        )
        _converse(args, session)
    return 0


def _converse(args: argparse.Namespace, session: "Session") -> None:
    from models.text.messages import opening

    messages: list[Message] | None = opening(args.system)
    while messages is not None:
        try:
            messages = _handle(args, session, messages, _read_line())
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\nCtrl-D or /quit ends the chat")


def _read_line() -> str:
    """What the user types. Raises EOFError at the end, EmberError where there is no stdin."""
    try:
        return input("> ")
    except OSError as error:
        raise EmberError(f"cannot read stdin: {reason(error)}") from error


def _handle(
    args: argparse.Namespace, session: "Session", messages: "list[Message]", typed: str
) -> "list[Message] | None":
    """Do what one line says; returns the conversation from then on, None at its end."""
    from app.console import note
    from models.text.messages import opening

    try:
        line = texts.typed(typed).strip()
    except EmberError as error:
        note(str(error))
        return messages
    if line == "/quit":
        return None
    if line == "/reset":
        return opening(args.system)
    if line == "/stats":
        print(session.engine.stats())
    elif line.startswith("/"):
        print(f"no command {inert_line(line.split()[0])!r}: {_HELP}")
    elif line:
        try:
            return _turn(args, session, messages, line)
        except OutputError:
            raise
        except EmberError as error:
            note(f"{with_flags(error)} (/reset starts over)")
    return messages


def _turn(
    args: argparse.Namespace, session: "Session", messages: "list[Message]", line: str
) -> "list[Message]":
    """Answer one line; returns the conversation with the question and the answer."""
    from app.console import note_loop, show
    from app.engine import Request
    from app.interrupt import cancel_on_interrupt
    from app.report import summary
    from models.text.messages import Message, Role

    asked = [*messages, Message(role=Role.USER, content=line)]
    made = session.prompt(asked)
    request = Request(
        prompt=made.ids,
        max_tokens=args.max_tokens,
        sampling=options.sampling(args),
        stop=tuple(args.stop),
        thinking=made.thinking,
        think_budget=args.think_budget,
        lookup=args.lookup,
        allow_loops=args.allow_loops,
    )
    with cancel_on_interrupt() as cancel:
        events = session.generate(request, cancel)
        (answer,) = show(events, echo=True, thinking=options.shows_thinking(args))
    cancel.check_killed()
    completion = answer.whole()
    session.chat.answered(completion)
    note_loop(completion)
    print(summary(completion, session.engine), file=sys.stderr)
    said = Message(role=Role.ASSISTANT, content=completion.text, thinking=completion.thinking)
    return [*asked, said]
