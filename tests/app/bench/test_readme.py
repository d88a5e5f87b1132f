import json
from pathlib import Path

import jsonschema
import pytest

from app.bench import readme, schema
from app.bench.sections.all import SECTIONS
from app.bench.showing import document
from kvcache import EmberError
from tests.app.bench.made_up import speed_row


def _with_results(folder: Path) -> None:
    view = SECTIONS["speed"].view
    found = document.document([speed_row("f16", 50.0, test="tg64", depth=0, batch=1)], {}, [view])
    folder.mkdir(exist_ok=True)
    (folder / f"{view.name}.json").write_text(json.dumps(found))


def test_places_of_pages_are_filled(tmp_path: Path) -> None:
    _with_results(tmp_path)
    place = "a\n<!-- bench: speed, tg64 at depth 0 -->\nold\n<!-- /bench -->\nb"
    filled = readme.fill(place, tmp_path)
    assert "old" not in filled
    assert "| a | f16 | a | 7 | 50.0 |" in filled
    assert filled.endswith("<!-- /bench -->\nb")
    assert readme.fill(filled, tmp_path) == filled


@pytest.mark.parametrize(
    ("place", "said"),
    [("speed, tg9 at depth 0", "results have"), ("spead, x", "expected"), ("claim, x", "cannot")],
)
def test_a_place_that_cannot_be_filled_is_refused(place: str, said: str, tmp_path: Path) -> None:
    _with_results(tmp_path)
    with pytest.raises(EmberError, match=said):
        readme.fill(f"<!-- bench: {place} -->\n<!-- /bench -->", tmp_path)


def test_pages_are_as_the_results_give_them() -> None:
    pages = readme.pages()
    assert {page.name for page in pages} >= {"README.md", "measurements.md"}
    for page, text in pages.items():
        assert readme.fill(text, readme.RESULTS) == text, page.name


def test_checked_in_results_fit_the_schema() -> None:
    for path in readme.results():
        jsonschema.validate(document.read(path), schema.make())


def test_checked_in_peers_name_the_settings_tried() -> None:
    found = document.read(readme.RESULTS / "speed.json")
    peers = [row for row in found["rows"] if row["engine"] != "ember"]
    assert peers
    assert found["env"]["llama.cpp"]
    assert all(row["setting"] in row["tried"] for row in peers)


def test_checked_in_tables_and_charts_are_those_of_the_results(tmp_path: Path) -> None:
    for path in readme.results():
        view = SECTIONS[path.stem].view
        for made in document.write(tmp_path, view, document.read(path)):
            assert (readme.RESULTS / made.name).read_text() == made.read_text(), made.name


def test_every_result_is_named_with_its_command() -> None:
    told = (readme.RESULTS / "README.md").read_text()
    for path in readme.RESULTS.iterdir():
        assert path.name == "README.md" or f"`{path.stem.split('-')[0]}" in told, path.name
