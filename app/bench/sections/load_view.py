"""What the rows of `bench load` show."""

from collections.abc import Sequence

from app.bench.sections.load import LoadRow
from app.bench.showing.table import Table
from app.bench.showing.view import Measure, View
from app.bench.showing.words import distinct, megabytes, short

Rows = Sequence[LoadRow]


def tables(rows: Rows) -> list[Table]:
    """Seconds and memory, a table for each model."""
    return [
        _table(model, [row for row in rows if row.model == model])
        for model in distinct(row.model for row in rows)
    ]


def findings(rows: Rows) -> list[str]:
    """ember's start in a sentence, and beside a peer's."""
    found = []
    for row in (row for row in rows if row.engine == "ember"):
        found.append(
            f"{row.model} ({megabytes(row.file_bytes)} MB) loads in {short(row.load_s)} s and "
            f"answers {short(row.first_token_s)} s after the start; at its peak it takes "
            f"{row.peak_rss_bytes / row.file_bytes:.2f} times the file, and a second process "
            f"{row.second_bytes / row.file_bytes:.0%} of it more."
        )
        for peer in (each for each in rows if each.engine != "ember" and each.model == row.model):
            found.append(
                f"{peer.engine} loads it in {short(peer.load_s)} s and answers after "
                f"{short(peer.first_token_s)} s; a second process takes "
                f"{peer.second_bytes / peer.file_bytes:.0%} of the file more."
            )
    return found


def _table(model: str, rows: Rows) -> Table:
    engines = "; ".join(distinct(f"{row.engine}: {row.settings}" for row in rows))
    return Table(
        title=f"From a start to an answer, {model}",
        columns=(
            "engine",
            "backend",
            "threads",
            "file MB",
            "load s",
            "first token s",
            "peak RSS MB",
            "of that cache MB",
            "peak / file",
            "second process MB",
        ),
        texts=2,
        rows=[_cells(row) for row in rows],
        note="load: from a path to a model, the file in the system's cache. first token: from the "
        "start of a process; of ember `ember run --prompt hi`, chat template and all, of others "
        "that word alone. second process: what it does not share with the first. "
        f"Medians of {rows[0].reps}. {engines}.",
    )


def _cells(row: LoadRow) -> tuple[str, ...]:
    return (
        row.engine,
        row.backend,
        str(row.threads or "-"),
        megabytes(row.file_bytes),
        short(row.load_s),
        short(row.first_token_s),
        megabytes(row.peak_rss_bytes),
        megabytes(row.kv_bytes),
        f"{row.peak_rss_bytes / row.file_bytes:.2f}",
        megabytes(row.second_bytes),
    )


VIEW = View(
    name="load",
    title="Loading",
    row=LoadRow,
    tables=tables,
    findings=findings,
    identity=("engine", "model", "backend", "threads"),
    measures=(
        Measure(field="load_s"),
        Measure(field="first_token_s"),
        Measure(field="peak_rss_bytes"),
        Measure(field="second_bytes"),
    ),
)
