"""How the figures of these programs become a table and sentences, as those of `bench` do."""

from collections.abc import Sequence

from app.bench.showing.table import Table
from app.bench.showing.view import Measure, View
from app.bench.showing.words import distinct
from tests.reliability.record import Row

Rows = Sequence[Row]

_TITLES = {
    "fuzz": "Mutated inputs",
    "walk": "Operations on a cache, against a list of tokens",
    "soak": "Long runs",
    "kills": "Commands ended at random moments",
    "faults": "Injected faults",
    "monkey": "Random misuse of the chat",
    "mutants": "GPU kernels with one mistake each",
}


def tables(rows: Rows) -> list[Table]:
    """A table for each program."""
    return [
        _table(program, [row for row in rows if row.program == program])
        for program in distinct(row.program for row in rows)
    ]


def findings(rows: Rows) -> list[str]:
    """What each program tried in all, and what came of it."""
    found = []
    for program in distinct(row.program for row in rows):
        mine = [row for row in rows if row.program == program]
        counts = (
            f"{sum(row.count for row in mine if row.unit == unit):,} {unit}"
            for unit in distinct(row.unit for row in mine)
        )
        faults = sum(row.faults for row in mine)
        found.append(f"{_TITLES.get(program, program)}: {', '.join(counts)}, {faults} faults.")
    return found


def _table(program: str, rows: Rows) -> Table:
    return Table(
        title=_TITLES.get(program, program),
        columns=("what", "command", "commit", "figures", "tried", "minutes", "faults"),
        texts=4,
        rows=[
            (
                row.what,
                f"`{row.command}`",
                row.commit,
                row.detail,
                f"{row.count:,} {row.unit}",
                f"{row.seconds / 60:.1f}",
                str(row.faults),
            )
            for row in rows
        ],
        note="faults: crashes, hangs, losses, wrong answers, and memory that grew; of mistakes "
        "made on purpose, those that nothing found and nobody explained.",
    )


VIEW = View(
    name="reliability",
    title="Reliability",
    row=Row,
    tables=tables,
    findings=findings,
    identity=("program", "what"),
    measures=(Measure(field="count", more_is_better=True), Measure(field="faults")),
)
