"""Markdown that grows: finished blocks are rendered once, only the last one anew.

A block of CommonMark ends when a line begins the next one, so everything before
the last top-level block is final once that line is complete. An open code fence
is not even parsed again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from markdown_it.token import Token
from textual.strip import Strip

from app.tui.text.blocks import block_lines, parser
from app.tui.text.code_block import CodeBlock
from app.tui.text.lines import LineMaker

# A paragraph without end is shown plainly, as parsing it at every token would
# cost more with every token.
_MAX_PARSED = 12_000
_PARSER = parser()


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


class GrowingMarkdown:
    """The lines of a Markdown text to which more is appended."""

    def __init__(self, maker: LineMaker) -> None:
        self._maker = maker
        self._done: list[Strip] = []
        self._tail = ""
        self._open: tuple[str, int, CodeBlock] | None = None
        self._known: tuple[str, list[Strip]] = "", []
        self.lines: list[Strip] = []

    def append(self, text: str, *, final: bool = False) -> None:
        """Add text; `final` says that no more will come."""
        self._tail += text
        if self._open is not None and not final and self._grow_fence():
            return
        self._open = None
        blocks, lines = _blocks(self._tail), self._tail.split("\n")
        if not blocks:
            self.lines = self._done
            return
        kept = 1 if final else _unsettled(blocks, lines)
        for block in blocks[:-kept]:
            self._done = _joined(self._done, self._remembered(block, lines))
        self._tail = "\n".join(lines[blocks[-kept].start :])
        self.lines = self._done
        for block in blocks[-kept:-1]:
            self.lines = _joined(self.lines, self._remembered(block, lines))
        last = self._last(blocks[-1], lines, settled=kept == 1, final=final)
        self.lines = _joined(self.lines, last)
        if len(self._tail) > _MAX_PARSED and blocks[-1].fence is None:
            self._done, self._tail = self.lines, ""

    def _grow_fence(self) -> bool:
        """Show more of an open fence; False where it has been closed."""
        assert self._open is not None
        markup, at, code = self._open
        body = self._tail[at:]
        if any(_closes(line, markup) for line in body.split("\n")):
            return False
        self.lines = _joined(self._done, code.growing(body))
        return True

    def _last(self, block: _Block, lines: list[str], *, settled: bool, final: bool) -> list[Strip]:
        """The block that still grows; `settled` says that the tail begins with it."""
        fence = block.fence
        head, *body = lines[block.start :]
        closed = fence is not None and any(_closes(line, fence.markup) for line in body)
        if fence is None or final or closed or not fence.markup:
            return self._finished(block, lines)
        code = CodeBlock(self._maker, _info(head, fence))
        if settled:
            self._open = fence.markup, len(head) + 1, code
        return code.growing("\n".join(body))

    def _remembered(self, block: _Block, lines: list[str]) -> list[Strip]:
        """As `_finished`; the block before a growing line is asked for again and again."""
        source = "\n".join(lines[block.start : block.end])
        if self._known[0] != source:
            self._known = source, self._finished(block, lines)
        return self._known[1]

    def _finished(self, block: _Block, lines: list[str]) -> list[Strip]:
        if (fence := block.fence) is not None:
            info = _info(lines[block.start], fence)
            return CodeBlock(self._maker, info).finished(fence.content)
        source = "\n".join(lines[block.start : block.end])
        if len(source) > _MAX_PARSED:
            return self._maker.wrap(source, self._maker.palette.text)
        return block_lines(self._maker, block.tokens, source)


def _joined(before: list[Strip], block: list[Strip]) -> list[Strip]:
    """Lines, an empty one, and a block without its own empty ones."""
    shown = [at for at, line in enumerate(block) if line.text.strip()]
    block = block[shown[0] : shown[-1] + 1] if shown else []
    gap = [Strip([])] if before and block else []
    return [*before, *gap, *block]


def _unsettled(blocks: Sequence[_Block], lines: Sequence[str]) -> int:
    """How many blocks at the end may still change.

    The last one; and where its only line is not complete, the one before: `1` is a
    paragraph until it becomes `1.`, the next item of the list before it.
    """
    begins_in_last_line = blocks[-1].start >= len(lines) - 1
    return min(2 if begins_in_last_line else 1, len(blocks))


def _blocks(source: str) -> list[_Block]:
    """The top-level blocks of a text."""
    blocks: list[_Block] = []
    gathered: list[Token] = []
    for token in _PARSER.parse(source):
        gathered.append(token)
        if token.level == 0 and token.nesting <= 0:
            start, end = gathered[0].map or (0, 0)
            blocks.append(_Block(tokens=gathered, start=start, end=end))
            gathered = []
    return blocks


def _info(head: str, fence: Token) -> str:
    """What follows a fence's mark, as it was written."""
    return head.strip().removeprefix(fence.markup) if fence.markup else ""


def _closes(line: str, markup: str) -> bool:
    """Whether a line ends the fence that `markup` opened."""
    stripped = line.strip()
    return len(stripped) >= len(markup) and set(stripped) == set(markup) and line[:4].strip() != ""
