"""What the documentation shows is so: snippets print it, commands are taken, paths are there."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest

import kvcache.mlx_lm
from app import cli
from tests.frozen import flags

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
FOLDERS = ("app", "assets", "docs", "examples", "kvcache", "models", "tests")
ENDINGS = ("cpp", "h", "json", "md", "metal", "py", "svg", "tcss", "toml", "txt")
_MOST_WORDS = 480  # of README, beside code and tables

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_FILE = re.compile(rf"(?![A-Z]+\.json)[\w./-]+\.({'|'.join(ENDINGS)})")
_LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)")


@dataclass(frozen=True, kw_only=True)
class Snippet:
    """Python on a page, and what stands below it as its output."""

    page: str
    code: str
    output: str | None


def _snippets() -> Iterator[Snippet]:
    for page, text in TEXTS.items():
        for (kind, code), (below, output) in pairwise([*_BLOCK.findall(text), ("", "")]):
            if kind == "python":
                yield Snippet(page=page, code=code, output=output if below == "text" else None)


def _inline(text: str) -> list[str]:
    """What stands in backticks outside of blocks."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", _BLOCK.sub("", text))]


def _sessions(text: str) -> list[tuple[str, str]]:
    """Commands after a dollar, each with what stands below it."""
    typed = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
    return [pair for _, block in _BLOCK.findall(text) for pair in typed.findall(block)]


def _shell_lines(text: str) -> list[str]:
    """What is typed in blocks that are not Python or output."""
    blocks = [block for kind, block in _BLOCK.findall(text) if kind in ("", "sh")]
    lines = [line for block in blocks for line in block.splitlines()]
    typed = ("$ ", "make ", "ember", "python ", "pip ")
    return [line.removeprefix("$ ") for line in lines if line.startswith(typed)]


SNIPPETS = list(_snippets())


@pytest.fixture
def mlx_lm_as_it_was() -> Iterator[None]:
    yield
    kvcache.mlx_lm.uninstall()


@pytest.mark.network
@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: snippet.page)
@pytest.mark.usefixtures("mlx_lm_as_it_was", "smollm2_path")
def test_snippets_print_what_the_page_says(
    snippet: Snippet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet.code, snippet.page, "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out == snippet.output


@pytest.mark.network
@pytest.mark.usefixtures("smollm2_path")
def test_readmes_command_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for command, output in _sessions(TEXTS["README.md"]):
        given = _ember(shlex.split(command))
        if given is not None:
            assert cli.run(given) == 0
            assert capsys.readouterr().out == output
            printed.append(output)
    assert len(printed) == 1


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_examples_are_shown_whole_on_the_page_that_links_them(example: Path) -> None:
    shown = [each.page for each in SNIPPETS if each.code == example.read_text(encoding="utf-8")]
    assert len(shown) == 1, f"{example.name} is shown on {shown}: copy it into its page"
    assert f"/examples/{example.name})" in TEXTS[shown[0]]


def test_readme_is_short() -> None:
    text = re.sub(
        r"<!-- bench.*?/bench -->", "", _BLOCK.sub("", TEXTS["README.md"]), flags=re.DOTALL
    )
    assert len(re.findall(r"\w\S*", text)) <= _MOST_WORDS


# -- commands --


@cache
def _flags() -> dict[str, list[str]]:
    return flags()


def _ember(words: list[str]) -> list[str] | None:
    """What is given to ember, its command first; None for other programs."""
    if words[:1] == ["ember"]:
        given = words[1:]
    elif words[:3] == ["python", "-m", "app"]:
        given = words[3:]
    else:
        return None
    named = given[:1] and f"ember {given[0]}" in _flags()
    return given if named else ["chat", *given]


def _check(command: str) -> None:
    """That a command, perhaps with places to fill in, is one: targets, modules, flags."""
    words = shlex.split(command, comments=True)
    given = _ember(words)
    if given is not None:
        name = " ".join(["ember", *given[:2]])
        known = _flags().get(name) or _flags()[f"ember {given[0]}"]
        assert {word for word in given if word.startswith("--")} <= {*known}, command
    elif words[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in words[1:])
    elif words[:2] == ["python", "-m"]:
        assert find_spec(words[2]) is not None, command


@pytest.mark.parametrize("page", TEXTS)
def test_commands_in_blocks_are_taken(page: str) -> None:
    for line in _shell_lines(TEXTS[page]):
        _check(line)
        given = _ember(shlex.split(line, comments=True))
        if given is not None:
            cli.parser().parse_args(given)


@pytest.mark.parametrize("page", TEXTS)
def test_commands_and_flags_in_the_text_exist(page: str) -> None:
    every = {flag for each in _flags().values() for flag in each}
    for code in _inline(TEXTS[page]):
        if code.startswith(("ember ", "python -m ", "make ")):
            _check(code)
        elif code.startswith("--"):
            assert code.split()[0] in every, code


# -- paths --


@cache
def _files() -> list[str]:
    """Every file of the project, from its root."""
    inside = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    here = [path for path in ROOT.iterdir() if path.is_file()]
    return [str(path.relative_to(ROOT)) for path in (*here, *inside)]


@pytest.mark.parametrize("page", TEXTS)
def test_paths_in_backticks_are_there(page: str) -> None:
    ours = [code for code in _inline(TEXTS[page]) if not code.startswith("~/")]
    for word in {word for code in ours for word in code.split()}:
        if _FILE.fullmatch(word) and word not in _files():
            ends = [path for path in _files() if path.endswith(f"/{word}")]
            assert len(ends) == 1, f"{word} is {ends or 'nowhere'}"
        if word.startswith(tuple(f"{folder}/" for folder in FOLDERS)):
            assert (ROOT / word).exists(), word


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page: str) -> None:
    for target, anchor in _LINK.findall(TEXTS[page]):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}
