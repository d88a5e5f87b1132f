from dataclasses import replace

import pytest

from app.bench.figures.formulas import tier_bytes
from app.bench.figures.shapes import network_of
from app.bench.meter import Meter
from app.bench.sections import memory, memory_view
from app.bench.sections.memory import MemoryRow
from app.bench.settings import MemorySettings


@pytest.fixture(scope="module")
def rows(tiny_path: object) -> list[MemoryRow]:
    settings = MemorySettings(
        model=str(tiny_path), kv=("f16", "hkivi4/q3"), contexts=(100, 900), filled_bytes=2**22
    )
    with Meter(memory.expected_seconds(settings)) as meter:
        return list(memory.run(settings, meter))


def test_what_lives_is_what_the_formula_says(rows: list[MemoryRow]) -> None:
    filled = [row for row in rows if row.live_bytes is not None]
    # TinyLlama's and the tiny model's; Llama-2-7B at 900 tokens is too large
    assert len(filled) >= 9
    for row in filled:
        assert row.live_bytes is not None
        assert row.held_bytes == row.allocated_bytes == row.formula_bytes
        # Python objects of a cache, some kilobytes a layer; others come and go meanwhile.
        others = 0.05 * row.formula_bytes + 40_000 * 32
        assert abs(row.live_bytes - row.formula_bytes) < others


def test_layers_with_a_window_are_filled_apart(tiny_path: object) -> None:
    network = replace(network_of(str(tiny_path)), windows=(150, None, 150), context=2000)
    plan = memory.plan_of(network, "hkivi4/q3", 900, "reference")
    held, allocated, live = memory._filled(plan, 2**22) or (0, 0, 0)
    assert (
        held
        == allocated
        == plan.max_bytes
        == tier_bytes(network, plan.kinds, cold_bits=plan.cold_bits)
    )
    assert abs(live - held) < 0.05 * held + 40_000 * 3


def test_rows_by_hand(rows: list[MemoryRow]) -> None:
    tiny = next(row for row in rows if row.model == "tiny")
    # 3 layers * 2 * 2 KV heads * 16 dims * 2 bytes
    assert (tiny.kv, tiny.context, tiny.formula_bytes) == ("f16", 100, 384 * 100)
    assert tiny.bits == 16
    llama = [row for row in rows if row.model == "Llama-2-7B" and row.context == 900]
    assert llama[0].live_bytes is None
    # 16 GiB * 2/3 - 4.081 GB - 0.4 GB, in tokens of 524288 bytes
    assert llama[0].fits_16gib == pytest.approx(13298, abs=64)
    assert llama[0].fits_8gib < llama[0].fits_16gib < llama[1].fits_16gib


def test_a_chat_with_a_7b_model_fits_8_gb(rows: list[MemoryRow]) -> None:
    fits = [row.fits_8gib for row in rows if row.model == "Llama-2-7B" and row.kv != "f16"]
    assert min(fits) >= 4000


def test_every_model_and_window_is_shown(rows: list[MemoryRow]) -> None:
    by_window, measured, fits = memory_view.tables(rows)
    assert by_window.columns[3:] == ("100", "900")
    assert len(by_window.rows) == len(fits.rows) == 3 * 2
    assert len(measured.rows) == len([row for row in rows if row.live_bytes is not None])
    assert [len(chart.series) for chart in memory_view.charts(rows)] == [2, 2, 2]
    assert "caches were filled" in memory_view.findings(rows)[0]


def test_readers_see_what_fits_as_usual_and_by_default(rows: list[MemoryRow]) -> None:
    as_default = [replace(row, kv="hkivi4/turbo4u") if row.kv != "f16" else row for row in rows]
    room = memory_view.tables(as_default)[-1]
    usual, default = (row for row in as_default if (row.model, row.context) == ("Llama-2-7B", 900))
    assert room.rows[1] == ("16 GB", f"{usual.fits_16gib:,}", f"{default.fits_16gib:,}")
    assert "4,096 tokens" in room.note
