"""One block of Markdown as lines.

Nothing that was written is left out: links and images stand with their addresses, lists
keep their numbers, backslashes stay, tables become narrower. What this cannot show, or
what the parser gives up on, is shown as its source. Knows no stream: see `markdown`.
"""

from collections import Counter
from collections.abc import Callable, Sequence

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from markdown_it.tree import SyntaxTreeNode
from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual.strip import Strip

from app.tui.text.code_block import CodeBlock
from app.tui.text.lines import LineMaker
from app.tui.text.markdown_table import Side, table_lines

# What stands within marks has at least so many cells; else it stands below them.
_LEAST = 8
_STYLES = {
    "strong": Style(bold=True),
    "em": Style(italic=True),
    "s": Style(strike=True),
}


def parser() -> MarkdownIt:
    """Markdown as a chat means it: HTML, entities and definitions are text, backslashes stay."""
    made = MarkdownIt("commonmark", {"html": False, "maxNesting": 40})
    made.enable(["table", "strikethrough"]).disable(["reference", "entity"])
    made.inline.ruler.at("escape", _escape)
    # Addresses are shown, not followed.
    for name in ("normalizeLink", "normalizeLinkText"):
        setattr(made, name, str)
    return made


def block_lines(maker: LineMaker, tokens: Sequence[Token], source: str) -> list[Strip]:
    """The lines of a top-level block; of its source where a letter of that would be missing."""
    lines = _Blocks(maker).lines(SyntaxTreeNode(tokens), maker.width, Style.null())
    shown = Counter(filter(str.isalnum, "".join(line.text for line in lines)))
    if Counter(filter(str.isalnum, source)) - shown:
        return maker.wrap(source.rstrip("\n"), maker.palette.text)
    return lines


class _Blocks:
    """Makes the lines of blocks within blocks."""

    def __init__(self, maker: LineMaker) -> None:
        self._maker = maker

    def lines(self, node: SyntaxTreeNode, width: int, style: Style) -> list[Strip]:
        """The lines of a node at a width, in what its parents have of a style."""
        maker, palette = self._maker, self._maker.palette
        match node.type:
            case "fence" | "code_block":
                return CodeBlock(maker, node.info, width).finished(node.content)
            case "blockquote":
                mark = Strip([Segment("▌ ", palette.muted)])
                return self._within(node, width, style + palette.muted, mark, mark, gaps=True)
            case "bullet_list":
                bullet = Strip([Segment(" • ", palette.accent)])
                return self._items(node, width, style, lambda _item: bullet)
            case "ordered_list":
                room = max(len(item.info) for item in node.children) + 2
                return self._items(node, width, style, lambda item: self._number(item, room))
            case "table":
                return self._table(node, width, style)
            case "hr":
                return [Strip([Segment("-" * width, palette.border)])]
            case "heading":
                return maker.wrap_text(self.text(node, style + palette.heading), width)
            case "root":
                return [line for each in node.children for line in self.lines(each, width, style)]
            case _:
                return maker.wrap_text(self.text(node, style), width)

    def _items(
        self,
        node: SyntaxTreeNode,
        width: int,
        style: Style,
        mark: Callable[[SyntaxTreeNode], Strip],
    ) -> list[Strip]:
        lines: list[Strip] = []
        for item in node.children:
            first = mark(item)
            rest = Strip([Segment(" " * first.cell_length)])
            lines += self._within(item, width, style, first, rest)
        return lines

    def _number(self, item: SyntaxTreeNode, room: int) -> Strip:
        return Strip([Segment(item.info.rjust(room - 1) + " ", self._maker.palette.accent)])

    def _within(
        self,
        node: SyntaxTreeNode,
        width: int,
        style: Style,
        first: Strip,
        rest: Strip,
        *,
        gaps: bool = False,
    ) -> list[Strip]:
        """The lines of a node's children, each behind a mark; or below it, where room is short."""
        inner = width - first.cell_length
        below = inner < min(_LEAST, width)
        inside: list[Strip] = []
        for child in node.children:
            inside += [Strip([])] if gaps and inside else []
            inside += self.lines(child, width if below else inner, style)
        if below:
            return [
                *self._maker.fold(first.text.strip(), self._maker.palette.accent, width),
                *inside,
            ]
        marks = [first, *[rest] * len(inside)]
        return [Strip.join(pair) for pair in zip(marks, inside or [Strip([])], strict=False)]

    def _table(self, node: SyntaxTreeNode, width: int, style: Style) -> list[Strip]:
        header, *body = [row.children for part in node.children for row in part.children]
        bold = style + _STYLES["strong"]
        rows = [[self.text(cell, bold) for cell in header]]
        rows += [[self.text(cell, style) for cell in row] for row in body]
        return table_lines(self._maker, rows, [_side(cell) for cell in header], width)

    # -- within a line --

    def text(self, node: SyntaxTreeNode, style: Style) -> Text:
        """What a node of text says."""
        text = Text()
        for inline in node.children:
            for each in inline.children:
                self._append(text, each, style)
        return text

    def _append(self, text: Text, node: SyntaxTreeNode, style: Style) -> None:
        palette = self._maker.palette
        match node.type:
            case "softbreak" | "hardbreak":  # in a chat, a new line is meant as one
                text.append("\n")
            case "code_inline":
                text.append(node.content, style + palette.code)
            case "image":
                text.append(f"[image: {node.content}]", style + palette.accent)
                self._append_address(text, str(node.attrs["src"]), node, style)
            case "link":
                for child in node.children:
                    self._append(text, child, style + palette.accent)
                if node.info != "auto":
                    self._append_address(text, str(node.attrs["href"]), node, style)
            case "strong" | "em" | "s":
                mark = node.markup if _is_name(node) else ""
                text.append(mark, style)
                for child in node.children:
                    self._append(text, child, style + _STYLES[node.type])
                text.append(mark, style)
            case _:
                text.append(node.content, style)

    def _append_address(self, text: Text, address: str, node: SyntaxTreeNode, style: Style) -> None:
        title = f' "{node.attrs["title"]}"' if "title" in node.attrs else ""
        text.append(" (", style)
        text.append(f"{address}{title}", style + self._maker.palette.muted)
        text.append(")", style)


def _side(cell: SyntaxTreeNode) -> Side:
    """Where the text of a table's column stands."""
    return Side(str(cell.attrs.get("style", "")).removeprefix("text-align:") or "left")


def _is_name(node: SyntaxTreeNode) -> bool:
    """Whether it is a name such as __init__, whose underscores belong to it."""
    inner = node.children[0] if len(node.children) == 1 else None
    is_double = node.markup == "__"
    return is_double and inner is not None and inner.content.isidentifier()


def _escape(state: StateInline, silent: bool) -> bool:
    """A backslash takes its meaning from the mark after it, and both are shown."""
    shown = state.src[state.pos : min(state.pos + 2, state.posMax)]
    if not shown.startswith("\\") or len(shown) < 2:
        return False
    shown = shown.removesuffix("\n")
    if not silent:
        state.push("text", "", 0).content = shown
    state.pos += len(shown)
    return True
