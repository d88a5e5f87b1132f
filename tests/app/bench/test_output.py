"""What all sections share: JSON, folder, schema, progress."""

import json
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest

from app import cli
from app.bench import meter, report, schema
from app.bench.environment import environment
from app.bench.meter import Clock, Meter, duration
from app.bench.sections.all import SECTIONS
from app.bench.sections.memory import MemoryRow
from app.bench.sections.speed_rows import SpeedRow
from app.bench.settings import MemorySettings, Settings
from app.bench.showing import document
from app.bench.showing.table import Table, to_markdown
from app.bench.showing.view import View
from app.bench.showing.words import megabytes, percent, short, tokens
from kvcache import EmberError
from tests.app.bench.made_up import VIEWS, example

MEMORY = SECTIONS["memory"]


# -- JSON and schema --


def test_the_checked_in_schema_is_that_of_the_rows() -> None:
    assert schema.FILE.read_text(encoding="utf-8") == schema.text()
    jsonschema.Draft202012Validator.check_schema(schema.make())


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
def test_rows_survive_json_and_fit_the_schema(view: View[Any]) -> None:
    row = example(view)
    told = environment() | {"settings": {}}
    found = json.loads(json.dumps(document.document(view.as_json([row]), told, [view])))
    jsonschema.validate(found, schema.make())
    assert view.from_json(found["rows"]) == [row]
    assert found["findings"] == {view.name: view.findings([row])}
    for verdict in found["verdicts"]:
        assert verdict["section"] == view.name
        assert verdict["what"] in " ".join(found["findings"][view.name])
    del found["rows"][0][view.identity[0]]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(found, schema.make())


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
def test_views_name_fields_of_their_rows(view: View[Any]) -> None:
    names = {field.name for field in fields(view.row)}
    assert names >= {*view.identity, *(measure.field for measure in view.measures)}
    assert names >= {measure.spread for measure in view.measures if measure.spread}


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
def test_one_row_is_enough_to_be_shown_and_written(view: View[Any], tmp_path: Path) -> None:
    row = example(view)
    found = document.document(view.as_json([row]), {"processor": "p"}, [view])
    files = document.write(tmp_path / "new", view, found)
    assert {path.suffix for path in files} >= {".json", ".md"}
    assert document.read(tmp_path / "new" / f"{view.name}.json") == found
    text = (tmp_path / "new" / f"{view.name}.md").read_text()
    assert text.startswith(f"# {view.title}\n")
    assert "- processor: p" in text
    for picture in (path for path in files if path.suffix == ".svg"):
        assert ElementTree.fromstring(picture.read_text()).tag.endswith("svg")
        assert picture.name in text


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(EmberError, match="holds no results of bench"):
        document.read(tmp_path / "a.json")
    with pytest.raises(EmberError, match="cannot read the results"):
        document.read(tmp_path / "none.json")


def test_the_environment_names_what_ran() -> None:
    found = environment()
    assert {"processor", "cores", "memory_bytes", "system", "python", "mlx", "mlx-lm"} <= set(found)
    assert found["memory_bytes"] > 2**28


# -- a run from the command line --


def _memory_flags(tiny_path: Path) -> list[str]:
    return ["bench", "memory", "-m", str(tiny_path), "--kv", "f16", "--contexts", "100"]


def test_a_section_prints_json_and_fills_a_folder(
    tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.run([*_memory_flags(tiny_path), "--json", "--out", str(tmp_path)])
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert code == 0
    jsonschema.validate(found, schema.make())
    assert [row["model"] for row in found["rows"]] == ["tiny", "TinyLlama 1.1B", "Llama-2-7B"]
    assert found["env"]["settings"]["model"] == "tiny"
    assert str(tiny_path.parent) not in out
    assert json.loads((tmp_path / "memory.json").read_text()) == found
    assert "this takes about" in err
    assert "memory of tiny, f16" in err


def test_a_section_prints_tables(tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(_memory_flags(tiny_path)) == 0
    out = capsys.readouterr().out
    assert "What fits beside the weights" in out
    assert "2.25 MB in f16; it is what f32 would take" in out.replace("\n", " ")


def test_an_interrupt_keeps_finished_rows(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop_after_one(settings: MemorySettings, meter: Meter) -> Any:
        yield next(MEMORY.run(settings, meter))
        raise KeyboardInterrupt

    section = replace(MEMORY, run=stop_after_one)
    settings = MemorySettings(model=str(tiny_path), kv=("f16",), contexts=(100,))
    code = report.measure([(section, settings), (section, settings)], out=None, as_json=True)
    out, err = capsys.readouterr()
    assert code == 130
    assert [row["model"] for row in json.loads(out)["rows"]] == ["tiny"]
    assert "interrupted: what is shown was finished" in err


def test_a_section_that_fails_leaves_the_others(
    tiny_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(settings: MemorySettings, meter: Meter) -> Any:
        raise EmberError("no such thing")

    broken = replace(MEMORY, run=fail)
    settings = MemorySettings(model=str(tiny_path), kv=("f16",), contexts=(100,))
    code = report.measure([(broken, settings), (MEMORY, settings)], out=None, as_json=True)
    out, err = capsys.readouterr()
    assert code == 1
    assert len(json.loads(out)["rows"]) == 3
    assert "error: memory: no such thing" in err
    with pytest.raises(EmberError, match="no such thing"):
        report.measure([(broken, settings)], out=None, as_json=True)


def test_all_sections_have_their_flags_and_a_quick_form() -> None:
    common = Settings(model="m", backend="cpu", threads=3)
    for section in SECTIONS.values():
        for settings in (section.settings.quick(common), section.settings.whole(common)):
            assert (settings.model, settings.backend, settings.threads) == ("m", "cpu", 3)


def test_the_quick_run_is_expected_to_take_two_minutes(tiny_path: Path) -> None:
    common = Settings(model=str(tiny_path))
    every = SECTIONS.values()
    quick = sum(each.seconds(each.settings.quick(common)) for each in every if each.is_quick)
    whole = sum(section.seconds(section.settings.whole(common)) for section in every)
    assert 60 < quick <= 120
    assert whole > 10 * quick


def test_all_sections_findings_are_in_one_document(
    tiny_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = MemorySettings(model=str(tiny_path), kv=("f16",), contexts=(100,))
    roofline = SECTIONS["roofline"]
    jobs = [(MEMORY, settings), (roofline, roofline.settings(model=str(tiny_path)))]
    assert report.measure(jobs, out=None, as_json=True) == 0
    found = json.loads(capsys.readouterr().out)
    jsonschema.validate(found, schema.make())
    assert list(found["findings"]) == ["memory", "roofline"]
    assert all(found["findings"].values())
    assert found["verdicts"] == []


# -- words, tables, progress --


def test_numbers_are_short() -> None:
    assert [megabytes(n) for n in (None, 612_000, 22_900_000, 3_018_000_000)] == [
        "-",
        "0.61",
        "22.9",
        "3,018",
    ]
    assert [tokens(n) for n in (100, 1024, 131072, 1500)] == ["100", "1k", "128k", "1,500"]
    assert [short(x) for x in (None, 0.0, 0.012345, 5.0, 99.96, 1234.5, 2.74e6)] == [
        "-",
        "0.00",
        "0.0123",
        "5.00",
        "100",
        "1,230",
        "2.74e+06",
    ]
    assert percent(-0.0312) == "-3.1%"


def test_markdown_by_hand() -> None:
    table = Table(title="t", columns=("a|b", "n"), rows=[("x", "1")], note="so")
    assert to_markdown(table) == "| a\\|b | n |\n| --- | ---: |\n| x | 1 |\n\nso"
    with pytest.raises(ValueError, match="got 1 cells, expected 2"):
        Table(title="t", columns=("a", "b"), rows=[("x",)])


def test_the_time_left_follows_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = Clock(100)
    assert (clock.share, clock.left) == (0.0, 100.0)
    clock.begin(40)
    now[0] = 20.0
    assert clock.share == pytest.approx(0.2)
    now[0] = 80.0  # twice what was expected
    assert clock.share == pytest.approx(0.4)
    clock.end()
    # 60 left, at (80 + 5) / (40 + 5) of the expected pace
    assert clock.left == pytest.approx(60 * 85 / 45)
    clock.begin(60)
    now[0] = 1000.0
    assert clock.share == 0.999


def test_durations_are_said_as_people_do() -> None:
    assert [duration(s) for s in (40, 89, 95, 3500, 7500)] == [
        "40 s",
        "89 s",
        "2 min",
        "58 min",
        "2 h 5 min",
    ]
    assert meter.duration is duration


def test_rows_of_two_sections_share_a_document() -> None:
    speed, memory = SECTIONS["speed"].view, MEMORY.view
    rows = [*speed.as_json([example(speed)]), *memory.as_json([example(memory)])]
    assert isinstance(speed.from_json(rows)[0], SpeedRow)
    assert isinstance(memory.from_json(rows)[0], MemoryRow)
    assert len(speed.from_json(rows)) == 1
