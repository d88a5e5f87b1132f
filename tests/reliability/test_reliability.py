"""Figures are kept as they are told, and the published table is theirs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from app.bench.readme import RESULTS
from app.bench.showing.document import read, write
from tests.reliability import __main__ as program
from tests.reliability.faults import FAULTS, ROOT
from tests.reliability.record import Row, keep, kept
from tests.reliability.view import VIEW

ROW = Row(program="fuzz", what="header", count=7, unit="inputs", faults=0, command="make fuzz")


def test_the_newest_figures_count(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    for row in (ROW, replace(ROW, what="blocks"), replace(ROW, count=9)):
        keep(path, row)
    keep(None, ROW)
    assert [(row.what, row.count) for row in kept(path)] == [("header", 9), ("blocks", 7)]
    assert len({row.commit for row in kept(path)}) == 1


def test_records_become_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record.jsonl"
    keep(path, replace(ROW, program="soak", what="chats", unit="chats", count=200, faults=1))
    keep(path, ROW)
    monkeypatch.setattr("sys.argv", ["reliability", str(path), "--out", str(tmp_path)])
    assert program.main() == 0
    found = json.loads((tmp_path / "reliability.json").read_text())
    assert [row["program"] for row in found["rows"]] == ["fuzz", "soak"]
    assert found["findings"]["reliability"] == [
        "Mutated inputs: 7 inputs, 0 faults.",
        "Long runs: 200 chats, 1 faults.",
    ]
    assert "| header | `make fuzz` |" in (tmp_path / "reliability.md").read_text()


def test_what_was_not_tried_again_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for rows in ((ROW, replace(ROW, what="blocks")), (replace(ROW, count=9),)):
        path = tmp_path / f"{len(rows)}.jsonl"
        for row in rows:
            keep(path, row)
        monkeypatch.setattr("sys.argv", ["reliability", str(path), "--out", str(tmp_path)])
        assert program.main() == 0
    found = json.loads((tmp_path / "reliability.json").read_text())["rows"]
    assert {row["what"]: row["count"] for row in found} == {"header": 9, "blocks": 7}


def test_the_published_table_is_of_the_published_figures(tmp_path: Path) -> None:
    write(tmp_path, VIEW, read(RESULTS / "reliability.json"))
    for made in tmp_path.iterdir():
        assert (RESULTS / made.name).read_text() == made.read_text(), made.name


def test_every_fault_has_its_test() -> None:
    for named in (each for tests in FAULTS.values() for each in tests):
        file, _, test = named.partition("::")
        assert f"def {test}" in (ROOT / file).read_text(), named
