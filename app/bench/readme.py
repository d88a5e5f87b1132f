"""The tables of README and docs/, generated from the project's own results.

A page has places such as

    <!-- bench: quality, Keys and values together -->
    ...
    <!-- /bench -->

which name a section and the title of one of its tables, or `findings`.
`python -m app.bench.readme` fills them from assets/results/SECTION.json, and makes the
Markdown and the charts beside each of these files anew.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.bench.sections.all import SECTIONS
from app.bench.showing.document import read, write
from app.bench.showing.table import to_markdown
from app.bench.showing.view import View
from kvcache.errors import EmberError

_ROOT = Path(__file__).parents[2]
RESULTS = _ROOT / "assets" / "results"
_PLACE = re.compile(r"(<!-- bench: (\w+), (.+?) -->\n).*?(<!-- /bench -->)", re.DOTALL)


def pages() -> dict[Path, str]:
    """README and the pages of docs/ that have places, with their texts."""
    paths = [_ROOT / "README.md", *sorted((_ROOT / "docs").rglob("*.md"))]
    texts = {path: path.read_text(encoding="utf-8") for path in paths}
    return {path: text for path, text in texts.items() if _PLACE.search(text)}


def fill(text: str, results: Path) -> str:
    """A page's text with every place filled.

    Raises EmberError for a place whose section, results or table there are not.
    """

    def filled(place: re.Match[str]) -> str:
        opening, section, title, closing = place.groups()
        return f"{opening}{_content(section, title, results)}\n{closing}"

    return _PLACE.sub(filled, text)


def results() -> list[Path]:
    """The sections' results that are there."""
    paths = [RESULTS / f"{name}.json" for name in SECTIONS]
    return [path for path in paths if path.exists()]


def _content(section: str, title: str, results: Path) -> str:
    if section not in SECTIONS:
        raise EmberError(f"a page asks for bench section {section!r}, expected {list(SECTIONS)}")
    view = SECTIONS[section].view
    rows = view.from_json(read(results / f"{section}.json")["rows"])
    if title == "findings":
        return "\n".join(f"- {finding}" for finding in view.findings(rows))
    return _table(view, rows, title)


def _table(view: View[Any], rows: Sequence[Any], title: str) -> str:
    tables = {table.title: table for table in view.tables(rows)}
    if title not in tables:
        raise EmberError(
            f"a page asks for the table {title!r} of bench {view.name}, "
            f"whose results have {list(tables)}"
        )
    return to_markdown(tables[title])


def main() -> int:
    """Redraw the results and fill the pages; returns the exit code."""
    try:
        for path in results():
            write(RESULTS, SECTIONS[path.stem].view, read(path))
        for page, text in pages().items():
            page.write_text(fill(text, RESULTS), encoding="utf-8")
    except EmberError as error:
        print(f"ember: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
