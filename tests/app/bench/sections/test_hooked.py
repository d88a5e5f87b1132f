"""ember's caches in mlx-lm's network, on a tiny model and by rows."""

from dataclasses import replace
from pathlib import Path

import mlx.core as mx

from app.bench.engines import mlx_lm_case
from app.bench.meter import Meter
from app.bench.sections import hooked, hooked_view
from app.bench.sections.hooked import HookedRow, Way
from app.bench.settings import HookedSettings


def test_rows_of_a_run(tiny_path: Path) -> None:
    stock = mx.fast.scaled_dot_product_attention
    settings = HookedSettings(model=str(tiny_path), depths=(0, 90), step=32, tg=2, reps=2)
    with Meter(10) as meter:
        rows = list(hooked.run(settings, meter))
    assert mx.fast.scaled_dot_product_attention is stock
    assert [(row.depth, row.way) for row in rows] == [
        (depth, way.value) for depth in (0, 90) for way in Way
    ]
    for row in rows:
        assert row.tps > 0
        assert row.kv_bytes > 0
        assert (row.step_bytes > 0) == (row.depth > 0)
        assert row.backend == ("mlx" if Way(row.way).is_own else "cpu")
    assert [rows[0].times, rows[len(Way)].times] == [1.0, 1.0]


def test_weights_are_decoded(tiny_path: Path) -> None:
    weights = mlx_lm_case.read_weights(str(tiny_path))
    decoded = mlx_lm_case.unquantized(weights)
    assert decoded.bits == {}
    ids = mx.array([[5, 6, 7]])
    quantized, unquantized = (mlx_lm_case.network(each, mx.float32) for each in (weights, decoded))
    assert mx.allclose(quantized(ids), unquantized(ids), atol=1e-4)


def test_what_rows_say() -> None:
    own = HookedRow(
        way=Way.OWN.value,
        model="m",
        backend="mlx",
        depth=2048,
        tps=10.0,
        times=1.0,
        kv_bytes=94_000_000,
        step_bytes=51_000_000,
        step_tokens=512,
        reps=5,
    )
    ours = replace(own, way=Way.INSTALLED.value, backend="cpu", tps=13.4, times=1.34)
    (table,) = hooked_view.tables([own, replace(ours, step_bytes=0)])
    assert table.rows[0] == (Way.OWN.value, "mlx", "2,048", "10.0", "1.00", "94.0", "51.0")
    assert table.rows[1][3:] == ("13.4", "1.34", "94.0", "-")
    assert hooked_view.findings([own, ours]) == [
        "ember's, installed at depth 2,048: 1.34 times the tokens per second of mlx-lm's KVCache."
    ]
    nothing = replace(own, way=Way.NONE.value, times=1.351)
    assert hooked_view.findings([own, ours, nothing]) == [
        "ember's, installed at depth 2,048: 1.34 times the tokens per second of mlx-lm's "
        "KVCache, where no attention at all would be 1.35 times."
    ]
    assert hooked_view.findings([]) == []
