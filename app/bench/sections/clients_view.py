"""What the rows of `bench serve` show."""

from collections.abc import Sequence

from app.bench.sections.clients import ServeRow
from app.bench.showing.table import Table
from app.bench.showing.view import Measure, View
from app.bench.showing.words import short

Rows = Sequence[ServeRow]


def tables(rows: Rows) -> list[Table]:
    """One table."""
    return [
        Table(
            title="A server of several clients",
            columns=(
                *("model", "engine", "clients", "one t/s", "all t/s", "times"),
                *("shared tokens", "first s", "kept s", "of first"),
            ),
            texts=2,
            rows=[
                (
                    row.model,
                    row.engine,
                    f"{row.clients}",
                    short(row.one_tps),
                    short(row.all_tps),
                    short(row.all_tps / row.one_tps),
                    f"{row.prefix:,}",
                    short(row.cold_s),
                    short(row.kept_s),
                    f"{100 * row.kept_s / row.cold_s:.1f}%",
                )
                for row in rows
            ],
            note=f"t/s: tokens a second, of answers of {rows[0].tokens}; prompts of some 50 tokens "
            "are read meanwhile. first, kept: to the first token of a request whose beginning "
            "nobody has sent before, and of another with the same beginning. "
            f"Medians of {rows[0].reps}.",
        )
    ]


def findings(rows: Rows) -> list[str]:
    """What sharing gains, in a sentence for each server, and how the others compare with ember."""
    shared = [
        f"{row.clients} clients of {row.engine} together get {short(row.all_tps / row.one_tps)} "
        f"times the tokens of one in answers of {row.tokens}; who shares {row.prefix:,} tokens "
        f"with an earlier request waits {short(row.kept_s)} s for the first token, not "
        f"{short(row.cold_s)} s."
        for row in rows
    ]
    ours, *others = rows
    return shared + [
        f"{ours.clients} clients of {ours.engine} get {short(ours.all_tps / other.all_tps)} times "
        f"the tokens of those of {other.engine}, one {short(ours.one_tps / other.one_tps)} times."
        for other in others
    ]


VIEW = View(
    name="serve",
    title="Serving",
    row=ServeRow,
    tables=tables,
    findings=findings,
    identity=("model", "engine", "clients", "tokens", "prefix"),
    measures=(
        Measure(field="one_tps", more_is_better=True),
        Measure(field="all_tps", more_is_better=True),
        Measure(field="kept_s"),
    ),
)
