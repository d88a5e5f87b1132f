"""What an empty conversation shows: the state of the model and where to begin."""

from collections.abc import Sequence

from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from app import units
from app.chat.controller import ChatController
from app.chat.state import Phase
from app.inert import inert_line
from app.tui.text.lines import LineMaker

STARTERS = (
    "Explain in three sentences what a KV cache is.",
    "Write a Python function that reverses a list, and explain it.",
    "Give me five names for a small robot, as a list.",
)


def welcome(
    maker: LineMaker, chat: ChatController, found: Sequence[tuple[str, int]], default: str
) -> list[Strip]:
    """Lines for an empty chat. found: models on this machine with their sizes."""
    palette = maker.palette
    lines = [Strip([]), *maker.wrap("◆ ember", palette.heading)]
    match chat.phase:
        case Phase.NO_MODEL:
            lines += _no_model(maker, chat, found, default)
        case Phase.LOADING:
            lines += maker.wrap("loading the model; type already, it will wait", palette.muted)
        case _:
            lines += _ready(maker, chat)
    hint = "/ commands · @ attaches a file · F1 keys · Ctrl-L models · Ctrl-O chats"
    return [*lines, Strip([]), *maker.wrap(hint, palette.muted)]


def _ready(maker: LineMaker, chat: ChatController) -> list[Strip]:
    model, palette = chat.model, maker.palette
    assert model is not None
    about = (
        f"{inert_line(model.name)} · window {model.window} tokens · "
        f"at most {units.size(model.max_bytes)} of KV cache ({model.kv}) · {model.backend}"
    )
    lines = [*maker.wrap(about, palette.muted), Strip([])]
    lines += maker.wrap("Ask anything, or begin with one of these (Tab puts it in):", palette.text)
    for number, starter in enumerate(STARTERS):
        lines += _link(maker, f"› {starter}", f"start:{number}")
    return lines


def _no_model(
    maker: LineMaker, chat: ChatController, found: Sequence[tuple[str, int]], default: str
) -> list[Strip]:
    palette = maker.palette
    if (fetching := chat.models.fetching) is not None:
        return maker.wrap(
            f"fetching {inert_line(fetching.spec)}; type already, it will wait", palette.muted
        )
    here = chat.service.is_here(default)
    if here and chat.models.problem is not None:
        return maker.wrap("No model is loaded: Enter shows what there is.", palette.text)
    if not found and not here:
        lines = maker.wrap("No model is on this machine yet.", palette.text)
        return [*lines, *_link(maker, f"› Enter fetches {inert_line(default)}", f"model:{default}")]
    lines = maker.wrap("No model is loaded. On this machine:", palette.text)
    if here:
        lines += _link(maker, f"› {inert_line(default)}  Enter loads it", f"model:{default}")
    for name, size in [each for each in found if each[0] != default][:8]:
        lines += _link(maker, f"› {inert_line(name)}  {units.file_size(size)}", f"model:{name}")
    return lines


def _link(maker: LineMaker, text: str, action: str) -> list[Strip]:
    """A line that can be clicked."""
    wrapped = maker.wrap(text, maker.palette.accent)
    meta = Style(meta={"ember": action})
    return [
        Strip([Segment(s.text, (s.style or Style.null()) + meta) for s in line]) for line in wrapped
    ]
