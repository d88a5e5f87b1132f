"""A fenced code block: a frame, its language, and a place to copy it.

    ┌ python ─────────────────── ⧉ copy ┐
    │ for block in cache.cold:          │
    └───────────────────────────────────┘

While the fence is open its code is plain and grows by lines, since colouring
it again at every token would cost more with every line. Meanwhile a thread has
Pygments compile the language's patterns, which takes it 60 ms the first time.
"""

import threading
from functools import cache

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from rich.syntax import Syntax
from rich.text import Text
from textual.strip import Strip

from app.tui.text.colours import readable, without_background
from app.tui.text.lines import LineMaker

_COPY = " ⧉ copy "
_FRAME = 4
# What is said of the code is shown in the frame's edge where the edge is longer by so much.
_EDGE = 4
_MAX_COLOURED = 50_000


class CodeBlock:
    """One code block at one width (default: the maker's). info: its language and what follows."""

    def __init__(self, maker: LineMaker, info: str, width: int | None = None) -> None:
        self._maker, self._info = maker, " ".join(info.split())
        self._language = self._info.partition(" ")[0]
        self._width = maker.width if width is None else width
        self._inner = max(self._width - _FRAME, 1)
        self._open_lines: list[Strip] = []
        self._open_at = 0

    def growing(self, code: str) -> list[Strip]:
        """The lines of a block whose end has not come; call with ever longer code."""
        _prepare(self._language, self._maker.palette.code_theme)
        end = code.rfind("\n") + 1
        if end > self._open_at:
            finished = code[self._open_at : end - 1]
            self._open_lines += self._framed(self._plain(finished))
            self._open_at = end
        return [*self._head(None), *self._open_lines, *self._framed(self._plain(code[end:]))]

    def finished(self, code: str) -> list[Strip]:
        """The lines of a complete block, coloured."""
        code = code.rstrip("\n")
        if len(code) > _MAX_COLOURED:
            lines = self._plain(code)
        else:
            text = _coloured(code, self._language, self._maker.palette.code_theme)
            text.rstrip()
            lines = [self._on_ours(line) for line in self._maker.fold_text(text, self._inner)]
        return [*self._head(code), *self._framed(lines), self._foot()]

    def _plain(self, code: str) -> list[Strip]:
        return self._maker.fold(code, self._maker.palette.text, self._inner)

    def _on_ours(self, line: Strip) -> Strip:
        """A coloured line on our background, not on that which its colours were made for."""
        background = self._maker.palette.background
        styles = [without_background(each.style or Style.null()) for each in line]
        pairs = zip(line, styles, strict=True)
        return Strip([Segment(each.text, readable(style, background)) for each, style in pairs])

    def _framed(self, lines: list[Strip]) -> list[Strip]:
        border = self._maker.palette.border
        left, right = Strip([Segment("│ ", border)], 2), Strip([Segment(" │", border)], 2)
        return [
            Strip.join([left, line.extend_cell_length(self._inner), right]).discard_meta()
            for line in lines
        ]

    def _head(self, code: str | None) -> list[Strip]:
        """The upper edge; with a place to click where there is code to copy."""
        palette, width = self._maker.palette, self._width
        fits = cell_len(self._info) + len(_COPY) + _EDGE + 2 < width
        name = f" {self._info} " if self._info and fits else ""
        copy = _COPY if code is not None and width > len(_COPY) + _EDGE else ""
        rule = "─" * max(width - 2 - cell_len(name) - len(copy), 0)
        click = Style(meta={"copy": code}) if copy else Style()
        segments = [
            Segment("┌", palette.border),
            Segment(name, palette.muted),
            Segment(rule, palette.border),
            Segment(copy, palette.accent + click),
            Segment("┐", palette.border),
        ]
        head = Strip([segment for segment in segments if segment.text])
        inside = [] if fits else self._maker.fold(self._info, palette.muted, self._inner)
        return [head, *self._framed(inside)]

    def _foot(self) -> Strip:
        rule = "─" * max(self._width - 2, 0)
        return Strip([Segment(f"└{rule}┘", self._maker.palette.border)])


def _coloured(code: str, language: str, theme: str) -> Text:
    return Syntax("", language or "text", theme=theme).highlight(code)


@cache
def _prepare(language: str, theme: str) -> None:
    """Have Pygments ready for a language by the time its block is complete."""
    threading.Thread(target=_coloured, args=("", language, theme), daemon=True).start()
