"""What the rows of `bench attention` show."""

from collections.abc import Sequence

from app.bench.sections.attention import AttentionRow
from app.bench.showing.chart import Axis, Chart, Scale, curves
from app.bench.showing.table import Table
from app.bench.showing.view import Measure, View
from app.bench.showing.words import distinct, megabytes, short, tokens

Rows = Sequence[AttentionRow]


def tables(rows: Rows) -> list[Table]:
    """A table for each context."""
    return [_table(context, rows) for context in distinct(row.context for row in rows)]


def charts(rows: Rows) -> list[Chart]:
    """Time of a step by context; ember's first kinds, and the others."""
    ours = distinct(row.kv for row in rows if row.kernel == "ember")[:3]
    return [
        Chart(
            name="attention",
            title="Attention of one token through all layers",
            x=Axis(label="tokens held", scale=Scale.TOKENS),
            y=Axis(label="milliseconds", scale=Scale.LOG),
            series=curves(
                (f"{_brief(row.kernel)}, {row.kv}", (row.context, 1000 * row.seconds))
                for row in rows
                if row.kernel != "ember" or row.kv in ours
            ),
        )
    ]


def findings(rows: Rows) -> list[str]:
    """ember's default against the fastest of what a user has without it."""
    found = []
    for context in distinct(row.context for row in rows):
        here = [row for row in rows if row.context == context]
        ours = [row for row in here if row.kernel == "ember"]
        others = [row for row in here if row.kernel != "ember"]
        if ours and others:
            best = min(others, key=lambda row: row.seconds)
            times = best.seconds / ours[0].seconds
            found.append(
                f"At {tokens(context)} tokens ember over {ours[0].kv} takes "
                f"{short(1000 * ours[0].seconds)} ms, {short(times)} times as fast as the next "
                f"best, {best.kernel} on {best.kv}."
            )
    return found


def _table(context: int, rows: Rows) -> Table:
    here = [row for row in rows if row.context == context]
    return Table(
        title=f"One token over {tokens(context)} tokens, all layers of {rows[0].model}",
        columns=(
            "kernel",
            "kv",
            "backend",
            "ms",
            "sd",
            "MB read",
            "GB/s",
            "of bandwidth",
            "setting",
        ),
        texts=3,
        rows=[
            (
                row.kernel,
                row.kv,
                row.backend,
                short(1000 * row.seconds),
                short(1000 * row.seconds_sd),
                megabytes(row.bytes_read),
                f"{row.gb_s:.2f}",
                f"{row.share:.0%}",
                row.setting,
            )
            for row in here
        ],
        note="MB read: keys and values as the kernel holds them. Over 100%: from processor caches."
        + _tried(here),
    )


def _tried(rows: Rows) -> str:
    """What else others' kernels were tried with."""
    told = (
        f"{row.kernel}, {row.kv}: "
        + "; ".join(f"{name} {short(1000 * seconds)} ms" for name, seconds in row.tried.items())
        for row in rows
        if len(row.tried) > 1
    )
    return "".join(f" Tried for {each}." for each in told)


def _brief(kernel: str) -> str:
    return kernel.removesuffix(" attention").replace("decode, then attend", "decode+attend")


VIEW = View(
    name="attention",
    title="Attention, kernel by kernel",
    row=AttentionRow,
    tables=tables,
    charts=charts,
    findings=findings,
    identity=("model", "kernel", "kv", "backend", "context"),
    measures=(
        Measure(field="seconds", spread="seconds_sd"),
        Measure(field="share", more_is_better=True),
    ),
)
