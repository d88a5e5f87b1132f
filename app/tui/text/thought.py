"""What was thought before an answer, as lines: what it took, and all of it where it is open.

Knows no widget. Lines that have ended are wrapped once.
"""

from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from app import units
from app.inert import inert
from app.sessions.chat import Thought
from app.tui.text.lines import LineMaker

META = "thought"
_FOLDED, _OPEN, _EDGE = "▸", "▾", "│ "


class ThoughtLines:
    """The lines of one thought that grows, at one width."""

    def __init__(self, maker: LineMaker) -> None:
        self._maker = maker
        self._edge = Segment(_EDGE, maker.palette.border)
        self._head: tuple[str, list[Strip]] = "", []
        self._ended: list[Strip] = []
        self._wrapped = 0

    def lines(self, thought: Thought, *, is_open: bool) -> list[Strip]:
        """All lines; call with ever longer thoughts."""
        mark = _OPEN if is_open else _FOLDED
        head = f"{mark} thinking {units.count(thought.tokens)} tok, {thought.seconds:.0f} s"
        if head != self._head[0]:
            style = self._maker.palette.muted + Style(meta={META: True})
            self._head = head, self._maker.wrap(head, style)
        return [*self._head[1], *(self._body(thought.text) if is_open else [])]

    def _body(self, text: str) -> list[Strip]:
        end = text.rfind("\n") + 1
        if end > self._wrapped:
            self._ended += self._edged(text[self._wrapped : end - 1])
            self._wrapped = end
        last = text[end:]
        return [*self._ended, *(self._edged(last) if last else [])]

    def _edged(self, text: str) -> list[Strip]:
        palette, width = self._maker.palette, self._maker.width - len(_EDGE)
        wrapped = self._maker.wrap(inert(text), palette.muted, width)
        return [Strip.join([Strip([self._edge]), line]) for line in wrapped]
