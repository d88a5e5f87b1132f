"""What the rows of `bench hooked` show."""

from collections.abc import Sequence

from app.bench.sections.hooked import HookedRow, Way
from app.bench.showing.table import Table
from app.bench.showing.view import Measure, View
from app.bench.showing.words import megabytes

Rows = Sequence[HookedRow]


def tables(rows: Rows) -> list[Table]:
    """Ways by depth."""
    return [
        Table(
            title="Caches in mlx-lm's own network",
            columns=("cache", "backend", "depth", "t/s", "times", "cache MB", "step MB"),
            texts=2,
            rows=[
                (
                    row.way,
                    row.backend,
                    f"{row.depth:,}",
                    f"{row.tps:.1f}",
                    f"{row.times:.2f}",
                    megabytes(row.kv_bytes),
                    megabytes(row.step_bytes) if row.step_bytes else "-",
                )
                for row in rows
            ],
            note="mlx-lm's Llama, float32 weights; the fastest token of several turns. times: over "
            "mlx-lm's KVCache. step: the most beside the cache while a prompt's last step is read.",
        )
    ]


def findings(rows: Rows) -> list[str]:
    """Each way of ours beside mlx-lm's own, and beside what no cache could exceed."""
    most = {row.depth: row.times for row in rows if row.way == Way.NONE.value}
    return [
        f"{row.way} at depth {row.depth:,}: {row.times:.2f} times the tokens per second of "
        f"mlx-lm's KVCache{_of_most(most.get(row.depth))}."
        for row in rows
        if row.backend != "mlx"
    ]


def _of_most(times: float | None) -> str:
    return "" if times is None else f", where no attention at all would be {times:.2f} times"


VIEW = View(
    name="hooked",
    title="In mlx-lm's own network",
    row=HookedRow,
    tables=tables,
    findings=findings,
    identity=("way", "model", "backend", "depth"),
    measures=(
        Measure(field="tps", more_is_better=True),
        Measure(field="kv_bytes"),
        Measure(field="step_bytes"),
    ),
)
