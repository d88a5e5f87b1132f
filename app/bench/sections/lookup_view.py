"""What the rows of `bench lookup` show."""

from collections.abc import Sequence

from app.bench.sections.lookup import LookupRow
from app.bench.showing.table import Table
from app.bench.showing.view import Measure, View

Rows = Sequence[LookupRow]


def tables(rows: Rows) -> list[Table]:
    """Tasks, with drafts and without."""
    return [
        Table(
            title="Drafts from the context",
            columns=("task", "tokens", "t/s without", "t/s", "gain", "accepted", "tokens a step"),
            rows=[
                (
                    row.task + (" *" if row.dictated else ""),
                    str(row.tokens),
                    f"{row.tps_without:.1f}",
                    f"{row.tps:.1f}",
                    f"{row.gain:.2f}",
                    f"{row.accepted} of {row.drafted}",
                    f"{row.tokens_per_step:.2f}",
                )
                for row in rows
            ],
            note="The fastest of several runs in turns. * what is said is dictated, "
            "and the network computes all that it would.",
        )
    ]


def findings(rows: Rows) -> list[str]:
    """The range of what is gained, and whether answers stayed the same."""
    if not rows:
        return []
    most, least = max(rows, key=lambda row: row.gain), min(rows, key=lambda row: row.gain)
    same = sum(row.same for row in rows)
    return [
        f"{most.task}: {most.gain:.2f} times as fast with drafts; {least.task}: {least.gain:.2f}.",
        f"{same} of {len(rows)} answers are the same with drafts and without.",
    ]


VIEW = View(
    name="lookup",
    title="Drafts from the context",
    row=LookupRow,
    tables=tables,
    findings=findings,
    identity=("task", "model", "backend", "threads"),
    measures=(Measure(field="tps", more_is_better=True),),
)
