"""Markdown that grows: finished blocks are rendered once, only the last one anew.

A block of CommonMark ends when the next one begins, so everything before the
last top-level block is final. An open code fence is not even parsed again.
HTML is text like any other, and links are shown, not made.
"""

from dataclasses import dataclass
from typing import ClassVar

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.markdown import Heading, Markdown
from rich.segment import Segment
from textual.strip import Strip

from app.tui.text.code_block import CodeBlock
from app.tui.text.lines import LineMaker

# A paragraph without end is shown plainly, as parsing it at every token would
# cost more with every token.
_MAX_PARSED = 12_000


@dataclass(frozen=True, kw_only=True)
class _Block:
    """A top-level block: its tokens and the lines [start, end) of the source."""

    tokens: list[Token]
    start: int
    end: int

    @property
    def fence(self) -> Token | None:
        """The token, where the block is a code fence."""
        return self.tokens[0] if self.tokens[0].type in ("fence", "code_block") else None


class _Heading(Heading):
    LEVEL_ALIGN: ClassVar = dict.fromkeys(Heading.LEVEL_ALIGN, "left")


class _LeftAligned(Markdown):
    """Rich's Markdown with its headings where the text is."""

    elements: ClassVar = {**Markdown.elements, "heading_open": _Heading}


class GrowingMarkdown:
    """The lines of a Markdown text to which more is appended."""

    def __init__(self, maker: LineMaker) -> None:
        self._maker = maker
        self._done: list[Strip] = []
        self._tail = ""
        self._open: tuple[str, int, CodeBlock] | None = None
        self.lines: list[Strip] = []

    def append(self, text: str, *, final: bool = False) -> None:
        """Add text; `final` says that no more will come."""
        self._tail += text
        if self._open is not None and not final and self._grow_fence():
            return
        self._open = None
        blocks = _blocks(self._tail)
        lines = self._tail.split("\n")
        for block in blocks[:-1]:
            self._done = self._with_gap(self._finished(block, lines))
        if not blocks:
            self.lines = self._done
            return
        self._tail = "\n".join(lines[blocks[-1].start :])
        self.lines = self._with_gap(self._last(blocks[-1], final=final))
        if len(self._tail) > _MAX_PARSED and blocks[-1].fence is None:
            self._done, self._tail = self.lines, ""

    def _grow_fence(self) -> bool:
        """Show more of an open fence; False where it has been closed."""
        assert self._open is not None
        markup, at, code = self._open
        body = self._tail[at:]
        if any(_closes(line, markup) for line in body.split("\n")):
            return False
        self.lines = self._with_gap(code.growing(body))
        return True

    def _last(self, block: _Block, *, final: bool) -> list[Strip]:
        lines = self._tail.split("\n")
        fence = block.fence
        if fence is None or final or not fence.markup:
            return self._finished(block, lines, offset=block.start)
        if any(_closes(line, fence.markup) for line in lines[1:]):
            return self._finished(block, lines, offset=block.start)
        code = CodeBlock(self._maker, fence.info)
        self._open = fence.markup, len(lines[0]) + 1, code
        return code.growing(self._tail[len(lines[0]) + 1 :])

    def _finished(self, block: _Block, lines: list[str], *, offset: int = 0) -> list[Strip]:
        if (fence := block.fence) is not None:
            return CodeBlock(self._maker, fence.info).finished(fence.content)
        source = lines[block.start - offset : block.end - offset]
        if sum(map(len, source)) > _MAX_PARSED:
            return self._maker.wrap("\n".join(source), self._maker.palette.text)
        rendered = _LeftAligned("", code_theme=self._maker.palette.code_theme, hyperlinks=False)
        rendered.parsed = block.tokens
        segments = self._maker.console.render_lines(rendered, self._maker.options, pad=False)
        return [Strip(_without_padding(line)) for line in segments]

    def _with_gap(self, block: list[Strip]) -> list[Strip]:
        """The finished lines, an empty one, and the block without its own empty ones."""
        shown = [at for at, line in enumerate(block) if line.text.strip()]
        block = block[shown[0] : shown[-1] + 1] if shown else []
        gap = [Strip([])] if self._done and block else []
        return [*self._done, *gap, *block]


def _without_padding(line: list[Segment]) -> list[Segment]:
    """Drop the blanks that Rich fills a line with, where they cannot be seen."""
    while line and not line[-1].text.strip() and not (line[-1].style and line[-1].style.bgcolor):
        line.pop()
    return line


def _blocks(source: str) -> list[_Block]:
    """The top-level blocks of a text."""
    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    blocks: list[_Block] = []
    gathered: list[Token] = []
    for token in parser.parse(source):
        _keep_line_breaks(token)
        gathered.append(token)
        if token.level == 0 and token.nesting <= 0:
            start, end = gathered[0].map or (0, 0)
            blocks.append(_Block(tokens=gathered, start=start, end=end))
            gathered = []
    return blocks


def _keep_line_breaks(token: Token) -> None:
    """In a chat, a new line is meant as one."""
    for child in token.children or ():
        if child.type == "softbreak":
            child.type = "hardbreak"


def _closes(line: str, markup: str) -> bool:
    """Whether a line ends the fence that `markup` opened."""
    stripped = line.strip()
    return len(stripped) >= len(markup) and set(stripped) == set(markup) and line[:4].strip() != ""
