"""What the rows of `bench endless` show."""

from collections.abc import Sequence

from app.bench.sections.endless import EndlessRow, Task
from app.bench.showing.chart import Axis, Chart, Series
from app.bench.showing.table import Table
from app.bench.showing.view import Measure, View
from app.bench.showing.words import megabytes

Rows = Sequence[EndlessRow]


def tables(rows: Rows) -> list[Table]:
    """Reading by quarters, then telling."""
    read, told = _of(rows, Task.READ), _of(rows, Task.TOLD)
    return [table(part) for table, part in ((_reading, read), (_telling, told)) if part]


def charts(rows: Rows) -> list[Chart]:
    """Likelihood by quarter."""
    return [
        Chart(
            name="endless",
            title="A text far beyond the window: likelihood against fresh recomputation",
            x=Axis(label="quarter of the text"),
            y=Axis(label="NLL, times that of a fresh f16 window"),
            series=[
                Series(name=row.cache, points=list(enumerate(_quarters(row), 1)))
                for row in _of(rows, Task.READ)
            ],
        )
    ]


def findings(rows: Rows) -> list[str]:
    """How far the default is off at most, and whether the story stayed whole."""
    found = []
    for row in (row for row in _of(rows, Task.READ) if row.cache == "default"):
        worst = max(abs(ratio - 1) for ratio in _quarters(row))
        found.append(
            f"{row.tokens:,} tokens read through a window of {row.ctx:,}: every quarter is within "
            f"{worst:.1%} of fresh f16 recomputation."
        )
    for row in _of(rows, Task.TOLD):
        least, most = row.allocated_least or 0, row.allocated_most or 0
        memory = "never changed" if least == most else f"rose to {megabytes(most)} MB"
        numbers = "no NaN or infinity" if row.finite else "NaN or infinity"
        found.append(
            f"{row.tokens:,} tokens drawn at temperature 0.8: {numbers}; the cache's "
            f"{megabytes(least)} MB, looked at ten times, {memory}; "
            f"{row.distinct or 0:.0%} of the 4-grams are different."
        )
    return found


def _reading(rows: Rows) -> Table:
    first = rows[0]
    return Table(
        title="Reading far beyond the window",
        columns=("cache", "1st quarter", "2nd", "3rd", "4th", "NLL, all"),
        rows=[
            (row.cache, *(f"{ratio:.3f}" for ratio in _quarters(row)), f"{row.nll:.3f}")
            for row in rows
        ],
        note=f"A text of {first.tokens:,} tokens, a window of {first.ctx:,}; negative "
        "log-likelihood at sampled positions, as a ratio to fresh f16 recomputation of a window.",
    )


def _telling(rows: Rows) -> Table:
    return Table(
        title="Telling far beyond the window",
        columns=("cache", "tokens", "finite", "distinct 4-grams", "MB at least", "MB at most"),
        rows=[
            (
                row.cache,
                f"{row.tokens:,}",
                "yes" if row.finite else "no",
                f"{row.distinct or 0:.3f}",
                megabytes(row.allocated_least),
                megabytes(row.allocated_most),
            )
            for row in rows
        ],
        note="Temperature 0.8, a fixed seed. MB: allocated for the cache, at tenths of the way.",
    )


def _of(rows: Rows, test: Task) -> list[EndlessRow]:
    return [row for row in rows if row.test == test.value]


def _quarters(row: EndlessRow) -> list[float]:
    found = (row.quarter_1, row.quarter_2, row.quarter_3, row.quarter_4)
    return [ratio for ratio in found if ratio is not None]


VIEW = View(
    name="endless",
    title="Is there an end?",
    row=EndlessRow,
    tables=tables,
    charts=charts,
    findings=findings,
    identity=("test", "cache", "ctx", "tokens"),
    measures=(
        Measure(field="nll"),
        Measure(field="quarter_1"),
        Measure(field="quarter_4"),
        Measure(field="distinct", more_is_better=True),
        Measure(field="allocated_most"),
    ),
)
