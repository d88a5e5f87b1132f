"""A server that is measured, on a tiny model, and what its row shows."""

from pathlib import Path

import pytest

from app.bench.meter import Meter
from app.bench.sections import clients, clients_view
from app.bench.sections.clients import ServeRow
from app.bench.settings import ServeSettings
from kvcache import EmberError
from tests.app.serve.conftest import write_served

ROW = ServeRow(
    model="m",
    engine="ember",
    clients=8,
    tokens=64,
    one_tps=50.0,
    all_tps=175.0,
    prefix=2003,
    cold_s=4.0,
    kept_s=0.1,
    reps=3,
    settings="0.1.0, defaults",
)


def test_the_row_of_a_run(tmp_path: Path) -> None:
    path = write_served(tmp_path / "small.gguf")
    settings = ServeSettings(model=str(path), clients=2, tokens=4, prefix=100, reps=1)
    with Meter(10) as meter:
        (row,) = clients.run(settings, meter)
    assert (row.engine, row.model, row.clients, row.reps) == ("ember", "small", 2, 1)
    assert row.prefix > 100
    assert min(row.one_tps, row.all_tps, row.cold_s, row.kept_s) > 0


def test_a_server_that_does_not_start_is_named(tmp_path: Path) -> None:
    settings = ServeSettings(model=str(tmp_path / "none.gguf"))
    with Meter(10) as meter, pytest.raises(EmberError, match="run `ember serve` to see why"):
        next(clients.run(settings, meter))


def test_what_a_row_shows() -> None:
    (table,) = clients_view.tables([ROW])
    assert table.rows[0][3:] == ("50.0", "175", "3.50", "2,003", "4.00", "0.100", "2.5%")
    assert clients_view.findings([ROW]) == [
        "8 clients of ember together get 3.50 times the tokens of one; who shares 2,003 tokens "
        "with an earlier request waits 0.100 s for the first token, not 4.00 s."
    ]
