"""Drafts and their absence, on a tiny model and by rows."""

from dataclasses import replace
from pathlib import Path

import pytest

from app.bench.meter import Meter
from app.bench.sections import lookup, lookup_view
from app.bench.sections.lookup import LookupRow
from app.bench.settings import LookupSettings
from kvcache import Backend
from models import load


def test_dictated_texts_repeat_their_question_or_do_not(tiny_path: Path) -> None:
    by_name = {task.name: task for task in lookup.tasks()}
    assert len(by_name) == len(lookup.tasks())
    assert "class StopTexts" in by_name["edit code"].dictated
    assert "window_width_left = settings.read(" in by_name["translate names"].dictated
    assert by_name["extract records"].dictated.count("\n") == 9
    assert {name for name, task in by_name.items() if not task.dictated} == {
        *("list names", "poem", "explain")
    }


def test_rows_of_a_run(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = "abab cdcd " * 4
    tasks = (
        lookup.Task(name="told", question="cd", dictated=told),
        lookup.Task(name="own", question="ab"),
    )
    monkeypatch.setattr(lookup, "tasks", lambda: tasks)
    settings = LookupSettings(model=str(tiny_path), backend="cpu", reps=1, tokens=40)
    with Meter(10) as meter:
        rows = list(lookup.run(settings, meter))
    assert [(row.task, row.dictated, row.same) for row in rows] == [
        ("told", True, True),
        ("own", False, True),
    ]
    length = len(load(tiny_path, backend=Backend.CPU).tokenizer.encode(told, add_special=False))
    assert rows[0].tokens == min(40, length)
    assert all(row.accepted <= row.drafted and row.tps > 0 for row in rows)


def test_what_rows_say() -> None:
    row = LookupRow(
        task="edit code",
        dictated=True,
        model="m",
        backend="cpu",
        threads=0,
        prompt_tokens=300,
        tokens=256,
        tps_without=100.0,
        tps=191.0,
        gain=1.91,
        drafted=180,
        accepted=170,
        tokens_per_step=2.98,
        same=True,
        reps=3,
    )
    rows = [row, replace(row, task="poem", dictated=False, gain=0.98, same=False)]
    (table,) = lookup_view.tables(rows)
    assert table.rows[0] == ("edit code *", "256", "100.0", "191.0", "1.91", "170 of 180", "2.98")
    assert table.rows[1][0] == "poem"
    assert lookup_view.findings(rows) == [
        "edit code: 1.91 times as fast with drafts; poem: 0.98.",
        "1 of 2 answers are the same with drafts and without.",
    ]
    assert lookup_view.findings([]) == []
