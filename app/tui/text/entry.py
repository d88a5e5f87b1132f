"""One message of the conversation as lines, kept up to date while it grows."""

from itertools import takewhile
from typing import TYPE_CHECKING

from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual.strip import Strip

from app import units
from app.inert import inert, inert_line
from app.sessions.chat import Attachment, ChatMessage, Figures, State
from app.tui.text.lines import LineMaker
from app.tui.text.thought import ThoughtLines
from models.text.messages import Role

if TYPE_CHECKING:
    from app.tui.text.markdown import GrowingMarkdown

CURSOR = "▍"
FIGURES = "figures"
VARIANT = "variant"
_GAP = Strip([])
_ENDINGS = {
    "length": "cut at max tokens · /continue goes on",
    "cancelled": "stopped",
    "loop": "it repeats itself: stopped · ^R answers otherwise, /continue goes on",
}


class Entry:
    """The lines of one message.

    body: how many of the lines are the message's own text; figures and errors
    stand below. same: how many lines the last change left as they were.
    """

    def __init__(self, message: ChatMessage, *, opens_thought: bool = False) -> None:
        self.message = message
        self._thought_is_open = opens_thought
        self._figures_are_open = False
        self._thought: ThoughtLines | None = None
        self.lines: list[Strip] = []
        self.body = self.same = 0
        self._maker: LineMaker | None = None
        self._markdown: GrowingMarkdown | None = None
        self._shown = ""
        self._state: tuple[object, ...] = ()

    @property
    def is_answer(self) -> bool:
        """Whether the model says it."""
        return self.message.role is Role.ASSISTANT

    def is_made_by(self, maker: LineMaker) -> bool:
        """Whether the lines have this width and these colours."""
        return maker is self._maker

    def toggle_thought(self) -> None:
        """Open what was thought before the answer, or fold it, with the next `sync`."""
        self.show_thought(is_open=not self._thought_is_open)

    def toggle_figures(self) -> None:
        """Say all that the answer cost, or what matters most, with the next `sync`."""
        self._figures_are_open = not self._figures_are_open

    def show_thought(self, *, is_open: bool) -> None:
        """Have what was thought before the answer open, or folded, with the next `sync`."""
        self._thought_is_open = is_open

    def estimate(self, maker: LineMaker) -> None:
        """Stand in with about as many empty lines as there will be."""
        text = self.message.text
        count = text.count("\n") + len(text) // maker.width + 3
        self.lines = [Strip([])] * count

    def sync(self, maker: LineMaker) -> bool:
        """Bring the lines up to date; returns whether they changed."""
        message = self.message
        said = (message.text, message.state, message.figures, message.error, _number(message))
        state = (*said, message.thought, self._thought_is_open, self._figures_are_open)
        if maker is self._maker and state == self._state:
            return False
        if maker is not self._maker or not message.text.startswith(self._shown):
            self._maker, self._markdown, self._shown = maker, None, ""
            self._thought = None
        self._state = state
        own = self._answered(maker) if self.is_answer else self._question(maker)
        self.body = len(own)
        lines = [*own, *self._below(maker), Strip([])]
        pairs = zip(self.lines, lines, strict=False)
        self.same = sum(1 for _ in takewhile(lambda pair: pair[0] is pair[1], pairs))
        self.lines = lines
        return True

    def _question(self, maker: LineMaker) -> list[Strip]:
        lines = [line for each in self.message.attachments for line in _chip(maker, each)]
        if self.message.text:
            lines += maker.wrap(inert(self.message.text), maker.palette.user)
        return lines

    def _answered(self, maker: LineMaker) -> list[Strip]:
        """The answer, below what was thought before it."""
        message = self.message
        if message.thought is None:
            return self._answer(maker)
        self._thought = self._thought or ThoughtLines(maker)
        thought = self._thought.lines(message.thought, is_open=self._thought_is_open)
        return [*thought, _GAP, *self._answer(maker)] if message.text else thought

    def _answer(self, maker: LineMaker) -> list[Strip]:
        message = self.message
        growing = message.state is State.STREAMING
        if self._markdown is None:
            # With the first answer: Markdown and Pygments would take a twentieth of a start.
            from app.tui.text.markdown import GrowingMarkdown

            self._markdown = GrowingMarkdown(maker)
        new = message.text[len(self._shown) :]
        if growing and new.endswith("\r"):  # half a line end, perhaps
            new = new[:-1]
        self._shown += new
        self._markdown.append(inert(new), final=not growing)
        lines = list(self._markdown.lines)
        if growing:
            return _with_cursor(lines, maker)
        # An answer that goes on is parsed anew: rarer than long chats, whose memory this is.
        self._markdown, self._shown = None, ""
        return lines or [Strip([])]

    def _below(self, maker: LineMaker) -> list[Strip]:
        message, palette = self.message, maker.palette
        lines = _variants(maker, message)
        if message.state is State.STREAMING:  # an answer that goes on has figures of before
            return lines
        if message.error:
            lines += maker.wrap(f"✗ {inert(message.error)}", palette.error)
        if message.figures:
            lines += _figures(maker, message.figures, is_open=self._figures_are_open)
        elif message.state is State.STOPPED:
            lines += maker.wrap("stopped", palette.muted)
        return lines


def _number(message: ChatMessage) -> tuple[int, int]:
    """Which of its variants a message is, from 1, and how many there are."""
    variants = message.variants
    return (variants.number(message) + 1, len(variants)) if variants else (1, 1)


def _variants(maker: LineMaker, message: ChatMessage) -> list[Strip]:
    """Which variant this is; a click on an arrow shows the one before, or after."""
    number, count = _number(message)
    if count < 2:
        return []
    accent, muted = maker.palette.accent, maker.palette.muted
    parts = [
        Segment("‹", accent + Style(meta={VARIANT: -1})),
        Segment(f" {number}/{count} ", muted),
        Segment("›", accent + Style(meta={VARIANT: 1})),
    ]
    return [Strip(parts)]


def _chip(maker: LineMaker, attachment: Attachment) -> list[Strip]:
    """An attachment in one line; its text is the model's to read."""
    text = Text()
    text.append("@ ", style=maker.palette.accent)
    text.append(inert_line(attachment.name), style=maker.palette.text)
    count = attachment.text.removesuffix("\n").count("\n") + 1
    lines = f"{count} line{'s' * (count > 1)}"
    size = units.size(len(attachment.text.encode("utf-8", "replace")))
    text.append(f" · {size}, {lines}", style=maker.palette.muted)
    return maker.wrap_text(text)


def _with_cursor(lines: list[Strip], maker: LineMaker) -> list[Strip]:
    cursor = Segment(CURSOR, maker.palette.accent)
    if not lines or lines[-1].cell_length >= maker.width:
        return [*lines, Strip([cursor])]
    return [*lines[:-1], Strip.join([lines[-1], Strip([cursor])])]


def _figures(maker: LineMaker, made: Figures, *, is_open: bool) -> list[Strip]:
    """What the answer cost: in a line, which can be clicked for the rest."""
    parts = [f"{made.tokens} token{'s' * (made.tokens != 1)}"]
    if made.decode_tps:
        parts.append(f"{units.rate(made.decode_tps)}/s")
    if made.ttft_s:
        parts.append(f"first after {units.seconds(made.ttft_s)}")
    ending = _ENDINGS.get(made.finish_reason)
    said = ", ".join(parts) + (f" · {ending}" if ending else "")
    mark = "▾" if is_open else "▸"
    lines = maker.wrap(f"{mark} {said}", maker.palette.muted + Style(meta={FIGURES: True}))
    return [*lines, *(maker.wrap(_rest(made), maker.palette.muted) if is_open else [])]


def _rest(made: Figures) -> str:
    """What an answer cost besides, a fact a line."""
    reused = f", {made.reused_tokens} of them known from before" if made.reused_tokens else ""
    facts = [
        f"the prompt: {made.prompt_tokens} tokens{reused}",
        f"read at {units.rate(made.prefill_tps)} tokens/s" if made.prefill_tps else "",
        f"by {inert_line(made.model)}" if made.model else "",
    ]
    return "\n".join(f"  {each}" for each in facts if each)
