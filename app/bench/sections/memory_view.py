"""What the rows of `bench memory` show."""

from collections.abc import Sequence

from app.bench.figures.published import FIGURES, verdict
from app.bench.figures.shapes import LLAMA_2_7B
from app.bench.sections.memory import MemoryRow
from app.bench.showing.chart import Axis, Chart, Scale, curves
from app.bench.showing.table import Table
from app.bench.showing.view import Measure, View
from app.bench.showing.words import distinct, megabytes, percent, tokens
from kvcache.config import DEFAULT_KV

Rows = Sequence[MemoryRow]


def tables(rows: Rows) -> list[Table]:
    """Bytes by window, formula against filled caches, and what fits."""
    return [_by_window(rows), _measured(rows), _fits(rows), *_room(rows)]


def charts(rows: Rows) -> list[Chart]:
    """Cache size by window, a chart for each model."""
    return [
        Chart(
            name=f"memory-{index + 1}",
            title=f"Cache of {model} by window",
            x=Axis(label="window, tokens", scale=Scale.TOKENS),
            y=Axis(label="MB, all layers", scale=Scale.LOG),
            series=curves(
                (row.kv, (row.context, row.formula_bytes / 1e6))
                for row in rows
                if row.model == model
            ),
        )
        for index, model in enumerate(distinct(row.model for row in rows))
    ]


def findings(rows: Rows) -> list[str]:
    """Whether the formula holds, and what is right of the figures that others published."""
    filled = [row for row in rows if row.live_bytes is not None]
    found = []
    if filled:
        worst = max(filled, key=lambda row: abs(_off(row)))
        found.append(
            f"{len(filled)} caches were filled; what lives differs from the formula by at most "
            f"{percent(_off(worst))} ({worst.model}, {worst.kv}, {tokens(worst.context)} tokens)."
        )
    return found + [verdict(figure) for figure in FIGURES]


def _by_window(rows: Rows) -> Table:
    windows = sorted({row.context for row in rows})
    found = {(row.model, row.kv, row.context): row for row in rows}
    pairs = distinct((row.model, row.kv, f"{row.bits:.2f}") for row in rows)
    return Table(
        title="Cache by window, MB (formula)",
        columns=("model", "kv", "cold bits", *map(tokens, windows)),
        texts=2,
        rows=[
            (model, kv, bits, *(_cell(found.get((model, kv, window))) for window in windows))
            for model, kv, bits in pairs
        ],
        note="MB are 1,000,000 bytes. Windows past the trained context take --beyond-context.",
    )


def _measured(rows: Rows) -> Table:
    return Table(
        title="Formula and filled caches, MB",
        columns=("model", "kv", "window", "formula", "held", "allocated", "live arrays", "off"),
        texts=2,
        rows=[
            (
                row.model,
                row.kv,
                tokens(row.context),
                megabytes(row.formula_bytes),
                megabytes(row.held_bytes),
                megabytes(row.allocated_bytes),
                megabytes(row.live_bytes),
                percent(_off(row)),
            )
            for row in rows
            if row.live_bytes is not None
        ],
        note="held, allocated: the cache's own figures. live arrays: the allocators'.",
    )


def _fits(rows: Rows) -> Table:
    first = {(row.model, row.kv): row for row in reversed(rows)}
    return Table(
        title="What fits beside the weights, tokens",
        columns=("model", "kv", "trained for", "8 GB", "16 GB", "24 GB"),
        texts=2,
        rows=[
            (
                model,
                kv,
                f"{row.trained_context:,}",
                *(f"{n:,}" for n in (row.fits_8gib, row.fits_16gib, row.fits_24gib)),
            )
            for (model, kv), row in reversed(first.items())
        ],
        note="Two thirds of the memory, as a Mac lets a GPU wire, less weights and 400 MB.",
    )


def _room(rows: Rows) -> list[Table]:
    """The same for one model as readers ask: in my memory, as usual and by default?"""
    found = {row.kv: row for row in rows if row.model == LLAMA_2_7B.name}
    if not found.keys() >= {"f16", DEFAULT_KV}:
        return []
    usual, default = found["f16"], found[DEFAULT_KV]
    fits = [(row.fits_8gib, row.fits_16gib, row.fits_24gib) for row in (usual, default)]
    return [
        Table(
            title=f"Tokens that fit beside {LLAMA_2_7B.name}",
            columns=("memory of the Mac", "in 16 bits (f16)", "as ember does"),
            rows=[
                (size, f"{f16:,}", f"{encoded:,}")
                for size, f16, encoded in zip(("8 GB", "16 GB", "24 GB"), *fits, strict=True)
            ],
            note=f"What a Mac lets its GPU use, two thirds of the memory, less 400 MB and the "
            f"{LLAMA_2_7B.weight_bytes / 1e9:.1f} GB of its file (Q4_K_M). This one was trained "
            f"for {usual.trained_context:,} tokens: it gets a longer window with "
            "`--beyond-context`.",
        )
    ]


def _cell(row: MemoryRow | None) -> str:
    return "" if row is None else megabytes(row.formula_bytes)


def _off(row: MemoryRow) -> float:
    return (row.live_bytes or 0) / row.formula_bytes - 1


VIEW = View(
    name="memory",
    title="Memory of the cache",
    row=MemoryRow,
    tables=tables,
    charts=charts,
    findings=findings,
    identity=("model", "kv", "context"),
    measures=(Measure(field="formula_bytes"), Measure(field="live_bytes")),
)
