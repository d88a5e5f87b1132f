"""What the rows of `bench needle` show."""

from collections.abc import Sequence

from app.bench.sections.needle import NeedleRow
from app.bench.showing.table import Table
from app.bench.showing.view import Measure, View
from app.bench.showing.words import distinct

Rows = Sequence[NeedleRow]


def tables(rows: Rows) -> list[Table]:
    """Cases by cache and length."""
    return [
        Table(
            title="Facts kept, by length of the text",
            columns=("kv", "hot", "tokens", "asked", "answered by f16", "of these kept"),
            rows=[
                (
                    row.kv,
                    str(row.hot),
                    f"{row.length:,}",
                    str(row.asked),
                    str(row.answered_by_f16),
                    str(row.kept),
                )
                for row in rows
            ],
            note="A number told within the first 300 tokens, asked for at the end.",
        )
    ]


def findings(rows: Rows) -> list[str]:
    """All lengths together."""
    found = []
    for kv in distinct(row.kv for row in rows):
        mine = [row for row in rows if row.kv == kv]
        asked, answered, kept = (sum(counts) for counts in zip(*map(_counts, mine), strict=True))
        share = f" ({kept / answered:.1%})" if answered else ""
        found.append(
            f"{asked} cases over {mine[0].length:,} to {mine[-1].length:,} tokens: the f16 cache "
            f"answers {answered}, {kv} keeps {kept} of them{share}."
        )
    return found


def _counts(row: NeedleRow) -> tuple[int, int, int]:
    return row.asked, row.answered_by_f16, row.kept


VIEW = View(
    name="needle",
    title="A fact in the cold tier",
    row=NeedleRow,
    tables=tables,
    findings=findings,
    identity=("kv", "hot", "length", "asked"),
    measures=(Measure(field="kept", more_is_better=True),),
)
