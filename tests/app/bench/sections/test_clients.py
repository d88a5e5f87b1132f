"""A server that is measured, on a tiny model, and what its row shows."""

import os
import sys
from dataclasses import replace
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


def test_a_peer_that_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    settings = ServeSettings(model=str(tmp_path / "none.gguf"), peers=True)
    with Meter(10) as meter, pytest.raises(EmberError, match="no llama-server on the path"):
        next(clients.run(settings, meter))


def test_a_peer_is_asked_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ember's own server stands for it."""
    path = write_served(tmp_path / "small.gguf")
    peer = tmp_path / "llama-server"
    peer.write_text(f'#!/bin/sh\nexec {sys.executable} -m app serve "$2" "$3" "$4" --ctx 700\n')
    peer.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    settings = ServeSettings(model=str(path), clients=2, tokens=4, prefix=90, reps=2, peers=True)
    with Meter(10) as meter:
        ember, other = clients.run(settings, meter)
    assert (ember.engine, other.engine) == ("ember", "llama.cpp")
    assert (ember.prefix, ember.tokens) == (other.prefix, other.tokens)
    assert other.settings.startswith("-np 2 -c 1212 -t ")
    assert len(clients_view.findings([ember, other])) == 3


def test_what_a_row_shows() -> None:
    (table,) = clients_view.tables([ROW])
    assert table.rows[0][3:] == ("50.0", "175", "3.50", "2,003", "4.00", "0.100", "2.5%")
    assert clients_view.findings([ROW]) == [
        "8 clients of ember together get 3.50 times the tokens of one in answers of 64; who shares "
        "2,003 tokens with an earlier request waits 0.100 s for the first token, not 4.00 s."
    ]


def test_peers_are_compared_with_ember() -> None:
    peer = replace(ROW, engine="llama.cpp", one_tps=100.0, all_tps=70.0)
    assert clients_view.findings([ROW, peer])[-1] == (
        "8 clients of ember get 2.50 times the tokens of those of llama.cpp, one 0.500 times."
    )
