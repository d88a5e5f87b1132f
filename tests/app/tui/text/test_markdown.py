"""Markdown that streams looks as if it had come at once."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.inert import inert
from app.tui.text.colours import Palette
from app.tui.text.lines import LineMaker
from app.tui.text.markdown import GrowingMarkdown

PIECES = [
    "# Title\n",
    "para *em* `code` text ",
    "\n\n",
    "\n",
    "- item\n",
    "  - deeper\n",
    "1. one\n",
    "> quote\n",
    "```python\n",
    "x = [1, 2]\n",
    "```\n",
    "~~~\n",
    "| a | b |\n|---|---|\n| 1 | 2 |\n",
    "---\n",
    "[link](javascript:x) ",
    "<b>html</b> ",
    "wide 漢字 🙂 ",
    "    indented\n",
    "x" * 90,
    "[bold red]markup[/] ",
]


def rendered(source: str, width: int = 37) -> list[str]:
    """The lines of a text that comes at once."""
    markdown = GrowingMarkdown(LineMaker(width, Palette()))
    markdown.append(source, final=True)
    return [line.text.rstrip() for line in markdown.lines]


@settings(max_examples=40)
# Half a number is a paragraph until its stop makes it an item of the list before it.
@example(["1. one\n", "\n\n", "1. two\n"], 1, 4)
@given(st.lists(st.sampled_from(PIECES), max_size=14), st.integers(1, 9), st.integers(1, 61))
def test_streamed_is_whole_and_no_line_is_too_wide(
    pieces: list[str], step: int, width: int
) -> None:
    source = "".join(pieces)
    markdown = GrowingMarkdown(LineMaker(width, Palette()))
    for at in range(0, len(source), step):
        markdown.append(source[at : at + step])
    markdown.append("", final=True)
    assert [line.text.rstrip() for line in markdown.lines] == rendered(source, width)
    # Rich cannot make a nested list or a table narrower than its own frame.
    assert all(line.cell_length <= max(width, 24) for line in markdown.lines)


@settings(max_examples=30)
@given(st.text(max_size=120))
def test_any_text_is_rendered(text: str) -> None:
    rendered(inert(text))


def test_html_and_markup_are_text() -> None:
    assert rendered("<script>x</script> [bold]y[/bold]") == ["<script>x</script> [bold]y[/bold]"]


def test_links_are_shown_not_made() -> None:
    assert rendered("[here](http://a.b/c)") == ["here (http://a.b/c)"]


def test_line_breaks_are_kept() -> None:
    assert rendered("roses\nviolets") == ["roses", "violets"]


def test_code_is_framed_and_folded() -> None:
    lines = rendered("```py\n" + "abcdefghij" * 3 + "\n```", width=20)
    assert lines[0].startswith("┌ py ─")
    assert lines[1:3] == ["│ abcdefghijabcdef │", "│ ghijabcdefghij   │"]
    assert lines[3] == "└──────────────────┘"


def test_an_open_fence_is_shown_as_it_grows() -> None:
    markdown = GrowingMarkdown(LineMaker(20, Palette()))
    shown = []
    for piece in ("see\n```py\na = ", "1\nb", " = 2\n", "```\nend"):
        markdown.append(piece)
        shown.append([line.text.strip("│ ") for line in markdown.lines[3:]])
    assert shown[0] == ["a ="]
    assert shown[1] == ["a = 1", "b"]
    assert shown[3][:2] == ["a = 1", "b = 2"]
    assert shown[3][-1] == "end"


def test_a_long_paragraph_stays_cheap_and_whole() -> None:
    markdown = GrowingMarkdown(LineMaker(50, Palette()))
    for _ in range(300):
        markdown.append("word " * 20)
    markdown.append("", final=True)
    words = " ".join(line.text for line in markdown.lines).split()
    assert len(words) == 300 * 20
