"""A chat that rests and wakes, on a tiny model, and what its row shows."""

from dataclasses import replace
from pathlib import Path

import pytest

from app.bench.meter import Meter
from app.bench.sections import wake, wake_view
from app.bench.sections.wake import WakeRow
from app.bench.settings import WakeSettings
from kvcache import EmberError

ROW = WakeRow(
    model="m",
    backend="cpu",
    kv="h8",
    tokens=3007,
    live_s=0.02,
    woken_s=0.12,
    anew_s=4.0,
    rest_s=0.6,
    step_s=0.004,
    p99_s=0.01,
    p99_resting_s=0.0102,
    disk_bytes=24_300_000,
    encoded_bytes=24_250_000,
    reps=7,
    settings="0.1.0, defaults",
)


def test_the_row_of_a_run(tiny_path: Path) -> None:
    settings = WakeSettings(model=str(tiny_path), tokens=90, reps=2)
    with Meter(10) as meter:
        (row,) = wake.run(settings, meter)
    assert (row.tokens, row.reps) == (97, 2)
    assert min(row.live_s, row.woken_s, row.anew_s, row.p99_s, row.p99_resting_s) > 0
    assert row.step_s <= row.rest_s
    assert row.encoded_bytes < row.disk_bytes < 2 * row.encoded_bytes


def test_a_short_text_is_refused(tiny_path: Path) -> None:
    settings = WakeSettings(model=str(tiny_path), tokens=900_000)
    with Meter(10) as meter, pytest.raises(EmberError, match="expected at least 900128"):
        next(wake.run(settings, meter))


def test_what_a_row_shows() -> None:
    first, costs = wake_view.tables([ROW])
    assert first.rows[0][3:] == ("3,007", "0.0200", "0.120", "0.100", "4.00")
    assert costs.rows[0] == ("3,007", "24.3", "24.2", "0.600", "4.00", "10.0", "10.2")
    assert wake_view.findings([replace(ROW, woken_s=0.22)]) == [
        "A chat of 3,007 tokens that was kept on disk answers 0.220 s after a question, 0.200 s "
        "later than one that was never left; read anew, after 4.00 s. It takes 24.3 MB, +0.2% of "
        "its encoded cache."
    ]
