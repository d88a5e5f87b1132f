"""Chat with a model: full screen, or line by line where there is none."""

import argparse
import sys
from signal import SIGINT, SIGTERM
from typing import TYPE_CHECKING

from app import cache_flags, options, prompt_words, texts

if TYPE_CHECKING:
    from app.chat.controller import ChatController
    from app.chat.settings import Settings
    from app.line_chat import LineChat
    from app.line_input import LineInput
    from app.service.live_service import LiveService
    from app.sessions.chat import Chat
    from app.sessions.store import SessionStore
    from app.tui.app import ChatApp
    from app.wake.waking import Waking
    from kvcache import CacheConfig

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
_EXAMPLES = """\
ember chat                               # the default model, or the one in the settings
ember chat "What is a KV cache?"         # with a first message
ember chat smollm2-360m --ctx 4096 --system "Answer in one sentence."
ember chat --continue                    # where you left
ember chat --plain                       # line by line
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's flags."""
    options.add_examples(parser, _EXAMPLES)
    options.add_model(parser)
    parser.add_argument(
        "words", nargs="*", type=texts.flag, metavar="PROMPT", help="the first message"
    )
    options.add_chat_template(parser)
    parser.add_argument("--system", type=texts.flag, help="system prompt")
    parser.add_argument(
        "--plain",
        action="store_true",
        help="line by line, no full screen; what is piped in is answered so too, a line at a time, "
        "and saved with --continue or --resume",
    )
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
    cache_flags.add_cache(parser)
    cache_flags.add_cache_store(parser)
    # What is not given here comes from the settings file.
    parser.set_defaults(**dict.fromkeys(_SETTABLE))


def run(args: argparse.Namespace) -> int:
    """Chat until the user ends it."""
    from app.console import note
    from app.terminal_kind import why_no_screen

    if args.resume is not None and args.continue_:
        raise options.UsageError("got --resume and --continue: give one")
    prompt_words.part(args)
    why = "" if args.plain else why_no_screen()
    if why is None:
        return _run_full_screen(args)
    if why:
        note(f"{why}; this is the chat line by line")
    return _run_lines(args)


def _run_full_screen(args: argparse.Namespace) -> int:
    from app.chat import personas
    from app.chat import settings as settings_file
    from app.tui.app import ChatApp

    model = options.named_model(args)
    settings, notices = _settings(args)
    store = _store(notices)
    chat = _saved_chat(args, store, notices)
    chat_app = ChatApp(
        _service(args, settings, saves=True),
        settings=settings,
        stop=tuple(args.stop),
        settings_path=settings_file.default_path(),
        personas_path=personas.default_path(),
        store=store,
        chat=chat,
        model=model or (chat.model if chat else "") or settings.model,
        first=" ".join(args.words),
        notices=notices,
    )
    return _until_left(chat_app)


def _run_lines(args: argparse.Namespace) -> int:
    """Without a screen. A chat with a pipe is saved where it goes on with a saved one."""
    from app.chat.controller import ChatController
    from app.console import note
    from app.line_chat import LineChat
    from app.sessions.store import SessionStore

    model = options.named_model(args)
    settings, notices = _settings(args)
    saves = sys.stdin.isatty() or args.continue_ or args.resume is not None
    store = _store(notices) if saves else SessionStore.in_memory()
    saved = _saved_chat(args, store, notices)
    for text in notices:
        note(text)
    chat = ChatController(
        _service(args, settings, saves=saves),
        settings.answers(tuple(args.stop)),
        system=settings.system,
        store=store,
        no_thinking="--think-budget 0",
    )
    if saved is not None:
        chat.show_chat(saved)
    thinking, first = options.shows_thinking(args), " ".join(args.words)
    lines = LineChat(chat, _line_input(chat), thinking=thinking, first=first)
    named = model or (saved.model if saved else "") or settings.model or options.DEFAULT_MODEL
    return _until_ended(lines, named, cache_flags.cache_config(args))


def _line_input(chat: "ChatController") -> "LineInput":
    """A line editor, where the terminal lets one draw."""
    from app.line_input import PlainInput
    from app.terminal_kind import obeys_nothing

    if obeys_nothing() or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return PlainInput()
    from app.line_chat import completions
    from app.line_editor import LineEditor

    return LineEditor(chat.asked_before, completions)


def _store(notices: list[str]) -> "SessionStore":
    """The saved chats; where they cannot be had, those of this run, which a notice says."""
    from app.sessions.schema import StoreError
    from app.sessions.store import SessionStore, default_path

    try:
        store = SessionStore.open(default_path())
    except StoreError as error:
        store = SessionStore.in_memory([f"{error}; the chats of this run are not saved"])
    notices += store.notes
    return store


def _service(args: argparse.Namespace, settings: "Settings", *, saves: bool) -> "LiveService":
    """The model's, with the cache that flags and settings want; kept on disk for saved chats."""
    from app.service.live_service import LiveService

    hot = args.hot
    pins_system = settings.keep == cache_flags.KEEP_SYSTEM
    _take_cache(args, settings)
    return LiveService(
        cache_flags.cache_config(args),
        keep_system=settings.system if pins_system else None,
        hot=hot,
        load=cache_flags.load_options(args),
        # What is kept on disk is a whole cache's.
        waking=_waking(settings, args.sleep) if saves and args.company is None else None,
        company=args.company,
    )


def _waking(settings: "Settings", asleep: str | None) -> "Waking | None":
    """What keeps encoded chats on disk, unless the user wants none."""
    from app.wake.folder import PieceFolder, default_folder
    from app.wake.waking import Waking

    most = settings.cache_store_bytes()
    if not most:
        return None
    sleeping = None if asleep is None else cache_flags.bytes_or_none(asleep)
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
    """Run the chat, then leave it; returns the exit code."""
    from app.interrupt import leaving_on_signal
    from app.tui.terminal.garbage import collected_at_rest

    try:
        signals = leaving_on_signal(chat_app.leave, before_end=chat_app.give_terminal_back)
        with collected_at_rest(), signals:
            chat_app.run()
    finally:
        _leave(chat_app.chat, chat_app.return_code or 0)
    return chat_app.return_code or 0


def _until_ended(lines: "LineChat", model: str, config: "CacheConfig") -> int:
    """Load the model, fetched first if need be, and chat; returns the exit code."""
    from app.kernels import compile_rest, compiling, wanted
    from app.session import fetch_with_bar

    code = 1
    try:
        with compiling(wanted(config.backend, model)):
            fetch_with_bar(model)
        lines.run(model)
        code = 0
    except SystemExit as ended:  # by a kill
        code = int(ended.code or 0)
        raise
    finally:
        _leave(lines.chat, code)
    compile_rest()
    # A script does not see what was told.
    return int(lines.failed and not sys.stdin.isatty())


def _leave(chat: "ChatController", code: int) -> None:
    """Save and close all that is a chat's, and say how it goes on."""
    from app.console import note
    from app.interrupt import exit_code, unheard
    from app.sessions.chat import shown_title

    with unheard(_END_SECONDS, code):
        failure = chat.close()
        number, title = chat.chat.id, chat.chat.title
        kept = number is not None and chat.store.is_kept
        chat.store.close()
        chat.service.close()
    if failure is not None:
        note(f"{failure}; the end of the chat is not saved")
    elif kept and code in (0, exit_code(SIGINT), exit_code(SIGTERM)):
        note(f"`ember chats resume {number}` goes on with “{shown_title(title)}”")


def _settings(args: argparse.Namespace) -> "tuple[Settings, list[str]]":
    """The settings file, with the flags that were given put over it; what is to be said of it."""
    from dataclasses import replace

    from app.chat import settings as settings_file

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
    is_system = settings.keep == cache_flags.KEEP_SYSTEM
    args.keep = settings.keep if is_system else int(settings.keep)
