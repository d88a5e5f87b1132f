"""What the rows of `bench wake` show."""

from collections.abc import Sequence

from app.bench.sections.wake import WakeRow
from app.bench.showing.table import Table
from app.bench.showing.view import Measure, View
from app.bench.showing.words import megabytes, percent, short

Rows = Sequence[WakeRow]


def tables(rows: Rows) -> list[Table]:
    """First tokens, then what it costs."""
    return [_first_tokens(rows), _costs(rows)]


def findings(rows: Rows) -> list[str]:
    """A chat that is reopened, in a sentence."""
    return [
        f"A chat of {row.tokens:,} tokens that was kept on disk answers {short(row.woken_s)} s "
        f"after a question, {short(row.woken_s - row.live_s)} s later than one that was never "
        f"left; read anew, after {short(row.anew_s)} s. It takes {megabytes(row.disk_bytes)} MB, "
        f"{percent(row.disk_bytes / row.encoded_bytes - 1)} of its encoded cache."
        for row in rows
    ]


def _first_tokens(rows: Rows) -> Table:
    return Table(
        title="From a question to the first token",
        columns=("model", "backend", "kv", "tokens", "live s", "woken s", "later by s", "anew s"),
        texts=3,
        rows=[
            (
                row.model,
                row.backend,
                row.kv,
                f"{row.tokens:,}",
                short(row.live_s),
                short(row.woken_s),
                short(row.woken_s - row.live_s),
                short(row.anew_s),
            )
            for row in rows
        ],
        note="live: the cache that has answered before. woken: a fresh one that finds the chat on "
        f"disk, reading it included. anew: a fresh one. Medians of {rows[0].reps} in turns, anew "
        "once.",
    )


def _costs(rows: Rows) -> Table:
    return Table(
        title="What it costs to keep a chat",
        columns=(
            "tokens",
            "MB on disk",
            "MB encoded",
            "s to keep all",
            "longest step ms",
            "p99 of a token ms",
            "while it is written",
        ),
        texts=0,
        rows=[
            (
                f"{row.tokens:,}",
                megabytes(row.disk_bytes),
                megabytes(row.encoded_bytes),
                short(row.rest_s),
                short(1000 * row.step_s),
                short(1000 * row.p99_s),
                short(1000 * row.p99_resting_s),
            )
            for row in rows
        ],
        note="A chat is kept while nothing else is to be done, in steps; a question waits for one "
        "of them at most. Later only what is new is written.",
    )


VIEW = View(
    name="wake",
    title="Waking up",
    row=WakeRow,
    tables=tables,
    findings=findings,
    identity=("model", "backend", "kv", "tokens"),
    measures=(
        Measure(field="woken_s"),
        Measure(field="rest_s"),
        Measure(field="step_s"),
        Measure(field="disk_bytes"),
    ),
)
