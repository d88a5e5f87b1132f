import json
import math
from pathlib import Path

import jsonschema
import pytest

from app import cli
from app.bench import compare, schema
from app.bench.environment import environment
from app.bench.sections.all import SECTIONS
from app.bench.showing import document
from tests.app.bench.made_up import VIEWS, speed_row


def test_changes_beyond_two_deviations_count() -> None:
    view = SECTIONS["speed"].view
    before = [speed_row(kv, 50.0) for kv in ("a", "b", "c", "gone")]
    after = [speed_row("a", 60.0), speed_row("b", 51.0), speed_row("c", 40.0, kv_bytes=8)]
    found = {(c.row.split()[2], c.field): c for c in compare.changes(view, before, after)}
    assert found["a", "tps"].better is True
    assert found["a", "tps"].share == pytest.approx(0.2)
    assert found["b", "tps"].better is None
    assert found["c", "tps"].better is False
    assert found["c", "kv_bytes"].better is False
    shown = compare.table(view, list(found.values()))
    assert len(shown.rows) == 3
    assert shown.note.startswith("9 other figures")
    assert compare.missing(view, before, after) == ["only before: speed a a gone a 7 a 7 7"]


def test_two_results_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, tps, mlx in (("a", 50.0, "1"), ("b", 60.0, "2")):
        found = document.document([speed_row("f16", tps)], {"mlx": mlx}, VIEWS)
        (tmp_path / f"{name}.json").write_text(json.dumps(found))
    code = cli.run(["bench", "compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")])
    out = capsys.readouterr().out
    assert code == 0
    assert "mlx: 1 before, 2 after" in out
    assert "+20.0%" in out
    assert "better" in out


def test_a_result_of_before_is_compared_with_one_of_today(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has no findings, no verdicts, and no settings of peers."""
    view = SECTIONS["speed"].view
    today = document.document([speed_row("f16", 60.0)], {"mlx": "1"}, [view])
    row = {k: v for k, v in speed_row("f16", 50.0).items() if k not in ("setting", "tried")}
    before = {"schema": 1, "env": {"mlx": "1"}, "rows": [row]}
    for name, found in (("a", before), ("b", today)):
        (tmp_path / f"{name}.json").write_text(json.dumps(found))
    code = cli.run(["bench", "compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")])
    assert code == 0
    assert "+20.0%" in capsys.readouterr().out
    told = {"settings": {}} | environment()
    jsonschema.validate(before | {"env": told}, schema.make())
    assert view.from_json(before["rows"])[0].tried == {}


ROW = speed_row("f16", 50.0)
_ABSENT = object()


@pytest.mark.parametrize("field", ["depth", "tps", "tps_sd"])
@pytest.mark.parametrize(
    "value",
    [_ABSENT, None, "fast", [1, {}], math.nan, math.inf, 10**400],
    ids=lambda v: f"{v!s:.9}",
)
def test_rows_of_strangers_are_compared_as_far_as_they_can_be(
    field: str, value: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = {k: v for k, v in (ROW | {field: value}).items() if v is not _ABSENT}
    for name, tps, row in (("a", 50.0, odd), ("b", 60.0, ROW)):
        rows = [speed_row("other", tps), row]
        found = {"schema": 1, "env": {}, "rows": rows}
        (tmp_path / f"{name}.json").write_text(json.dumps(found))
    paths = [str(tmp_path / f"{name}.json") for name in ("a", "b")]
    for given in (paths, paths[::-1]):
        assert cli.run(["bench", "compare", *given]) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert out.count("better") + out.count("worse") == 1
        assert ("without all of engine, model" in out) == (
            field == "depth" and not isinstance(value, str | int | float)
        )
