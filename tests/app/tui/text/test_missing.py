"""Nothing that a model writes is missing from the screen, whatever it writes and however wide."""

import re
from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.inert import inert
from tests.app.tui.text.test_markdown import rendered

WORD = re.compile(r"[^\W_]+")
WORDS = st.text("abcxyzäß漢字한ก0123456789", min_size=1, max_size=4)
MARKS = r"* ** _ __ ` `` ~~ \ \* \( [ ] ]( ![ ) < > | &amp; &lt;b&gt; <b> <!-- --> 🙂 👩‍👧 é"
STARTS = (
    "\n",
    "\n\n",
    "\n- ",
    "\n9) ",
    "\n> ",
    "\n# ",
    "\n    ",
    "\n```py x\n",
    "\n===\n",
    "\n---\n",
)
NOISE = st.sampled_from([*MARKS.split(), *STARTS, "\n| a | b |\n|-|-|\n", "\t", "  \n"])
SPANS = (
    *("{}", "{}", "*{}*", "**{}**", "`{}`", "~~{}~~", "__{}__", "<{}>", "<http://{}>"),
    *("[{}]({})", '[{}](x "{}")', "![{}](http://{})", "[{}][{}]", "\\({}\\)", "C:\\{}\\{}"),
)


@st.composite
def spans(draw: st.DrawFn) -> str:
    """Text within a line."""
    form = draw(st.sampled_from(SPANS))
    return form.format(draw(WORDS), draw(WORDS))


LINES = st.lists(spans(), min_size=1, max_size=6).map(" ".join)


@st.composite
def tables(draw: st.DrawFn) -> str:
    """A table; rows may have more cells than its header, or fewer."""
    columns = draw(st.integers(1, 9))
    header = draw(st.lists(spans(), min_size=columns, max_size=columns))
    rows = draw(st.lists(st.lists(LINES, max_size=11), max_size=4))
    marks = draw(
        st.lists(st.sampled_from(["-", ":-", "-:", ":-:"]), min_size=columns, max_size=columns)
    )
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, marks, *rows])


def _indented(text: str, first: str, rest: str) -> str:
    return "\n".join(
        (first if at == 0 else rest) + line for at, line in enumerate(text.split("\n"))
    )


def nested(leaves: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Blocks within blocks."""
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            inner.map(lambda each: _indented(each, "> ", "> ")),
            inner.map(lambda each: _indented(each, "- ", "  ")),
            st.builds(lambda at, each: _indented(each, f"{at}. ", "    "), NUMBERS, inner),
            st.builds("{}\n\n{}".format, inner, inner),
            st.builds("{}\n{}".format, inner, inner),
        ),
        max_leaves=8,
    )


NUMBERS = st.integers(10, 99)
PLAIN = st.one_of(
    LINES,
    LINES.map("# {}".format),
    st.builds("```{} {}\n{}\n```".format, WORDS, LINES, LINES),
    st.builds("[{}]: {} '{}'".format, WORDS, WORDS, WORDS),
    LINES.map("    {}".format),
    st.just("---"),
)
BLOCKS = nested(st.one_of(PLAIN, tables()))


def words(text: str) -> Counter[str]:
    return Counter(WORD.findall(text))


def letters(lines: list[str]) -> Counter[str]:
    return Counter(each for line in lines for each in line if each.isalnum())


@settings(max_examples=120)
@given(nested(PLAIN), st.integers(16, 90))
def test_every_word_is_shown(source: str, width: int) -> None:
    """A word that is longer than its line goes on in the next."""
    shown = "".join(line.strip("│▌• ") for line in rendered(source, width))
    assert [word for word in words(source) if word not in shown] == []


@settings(max_examples=120)
@example("> " * 60 + "deep", 30)
@example("- " * 60 + "deep\n\nafter", 30)
@example("[" * 60 + "deep" + "](x)" * 60, 30)
@given(
    st.one_of(BLOCKS, st.lists(st.one_of(WORDS, NOISE), max_size=40).map("".join)),
    st.integers(1, 30),
)
def test_every_letter_is_shown_however_narrow(source: str, width: int) -> None:
    shown = rendered(source, width)
    assert not letters([source]) - letters(shown), shown


@settings(max_examples=60)
@given(st.text(max_size=80), st.integers(1, 20))
def test_every_letter_of_any_text_is_shown(source: str, width: int) -> None:
    source = inert(source)
    assert not letters([source]) - letters(rendered(source, width))


@pytest.mark.parametrize("wide", [30, 80, 200])
def test_a_wide_table_becomes_narrower_or_a_record_a_row(wide: int) -> None:
    names = [f"column{number}" for number in range(7)]
    cells = [f"cell{number} with some words" for number in range(7)]
    rule = "|".join("-" * len(names))
    source = f"|{'|'.join(names)}|\n|{rule}|\n|{'|'.join(cells)}|\n"
    lines = rendered(source, wide)
    assert all(len(line) <= wide for line in lines)
    assert not words(source) - words("\n".join(lines))
    if wide == 30:
        assert "column6: cell6 with some words" in lines
    else:
        assert lines[0].split() == names


def test_wide_letters_wrap_in_text_tables_and_code() -> None:
    text = "漢字仮名交じり文" * 4
    for source in (text, f"|a|b|\n|-|-|\n|{text}|{text}|", f"```\n{text}\n```", f"- {text}"):
        lines = rendered(source, 21)
        assert not letters([source]) - letters(lines)


def test_links_and_images_stand_with_their_addresses() -> None:
    assert rendered("see ![a cat](http://x.y/cat.png) there", 60) == [
        "see [image: a cat] (http://x.y/cat.png) there"
    ]
    assert rendered('[a](b%20c "its title")', 60) == ['a (b%20c "its title")']
    assert rendered("<http://x.y> [http://x.y](http://x.y) <me@x.y>", 60) == [
        "http://x.y http://x.y (http://x.y) me@x.y"
    ]
    assert rendered("[a]: http://x.y 'title'", 60) == ["[a]: http://x.y 'title'"]


@pytest.mark.parametrize(
    "text",
    [r"\(x_1\) and \[y\]", r"C:\_new\*.txt", r"\d+\.\d*", "a \\", r"\\server\share", "&amp; &#65;"],
)
def test_backslashes_and_entities_stay(text: str) -> None:
    assert rendered(text, 60) == [text]


def test_a_backslash_still_takes_a_mark_its_meaning() -> None:
    assert rendered(r"\*not italic\* but *this*", 60) == [r"\*not italic\* but this"]


def test_names_keep_their_underscores() -> None:
    assert rendered("__init__ and __very strong__", 60) == ["__init__ and very strong"]


def test_numbers_of_a_list_are_those_that_were_written() -> None:
    assert rendered("3. a\n7. b\n10. c", 60) == ["  3 a", "  7 b", " 10 c"]


def test_what_follows_the_language_of_code_is_shown() -> None:
    assert rendered('```py title="a.py"\nx\n```', 60)[0].startswith('┌ py title="a.py" ─')
    assert rendered('```py title="a.py"\nx\n```', 20)[1:3] == [
        '│ py title="a.py"  │',
        "│ x                │",
    ]


def test_what_nests_too_deep_is_plain() -> None:
    assert rendered("> " * 60 + "deep", 200) == ["> " * 60 + "deep"]
