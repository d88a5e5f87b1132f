"""What the rows of `bench roofline` show."""

from collections.abc import Sequence

from app.bench.figures.gpu_time import FAST, SLOW
from app.bench.sections.roofline import F16, RooflineRow
from app.bench.showing.table import Table
from app.bench.showing.view import Measure, View
from app.bench.showing.words import distinct, megabytes, short, tokens

Rows = Sequence[RooflineRow]


def tables(rows: Rows) -> list[Table]:
    """Bytes of a token, then a table of ceilings for each model and kind of cache."""
    pairs = distinct((row.model, row.kv) for row in rows if row.kv != F16)
    timed = [row for row in rows if row.slow_ms is not None]
    return [
        _bytes(rows),
        *(_ceilings(rows, model, kv) for model, kv in pairs),
        *([_times(timed)] if timed else []),
    ]


def findings(rows: Rows) -> list[str]:
    """What the longest context gains, whatever the chip."""
    longest = max(row.context for row in rows)
    first = {(r.model, r.kv): r for r in reversed(rows) if r.context == longest and r.kv != F16}
    return [
        f"Computed, nothing measured: at {tokens(longest)} tokens {model} with {kv} moves "
        f"{megabytes(_moved(row))} MB a token, so memory allows {short(row.over_f16)} times the "
        "tokens a second of an f16 cache."
        for (model, kv), row in reversed(first.items())
    ]


def _bytes(rows: Rows) -> Table:
    first = {(row.model, row.kv, row.context): row for row in reversed(rows)}
    return Table(
        title="Bytes that a token moves, MB (computed)",
        columns=("model", "kv", "tokens held", "weights", "cache", "other", "all", "of f16"),
        texts=2,
        rows=[
            (
                model,
                kv,
                tokens(context),
                megabytes(row.weight_bytes),
                megabytes(row.cache_bytes),
                megabytes(row.other_bytes),
                megabytes(_moved(row)),
                f"{1 / row.over_f16:.0%}",
            )
            for (model, kv, context), row in reversed(first.items())
        ],
        note="other: queries, outputs and, as on a base chip, partial results of attention.",
    )


def _ceilings(rows: Rows, model: str, kv: str) -> Table:
    mine = [row for row in rows if row.model == model and row.kv in (F16, kv)]
    contexts = distinct(row.context for row in mine)
    found = {(row.chip, row.context, row.kv): row for row in mine}
    return Table(
        title=f"Ceiling of {model} with {kv}, tokens/s: computed, nothing measured",
        columns=(
            *("chip", "GB/s"),
            *(
                name
                for n in contexts
                for name in (f"{tokens(n)} f16", f"{tokens(n)} ember", "times")
            ),
        ),
        rows=[
            (
                chip,
                f"{gb_s:g}",
                *(
                    cell
                    for n in contexts
                    for cell in _cells(found.get((chip, n, F16)), found.get((chip, n, kv)))
                ),
            )
            for chip, gb_s in distinct((row.chip, row.gb_s) for row in mine)
        ],
        note="Stated bandwidth over the bytes above. -: more than two thirds of the most memory.",
    )


def _times(rows: Rows) -> Table:
    contexts = distinct(row.context for row in rows)
    found = {(row.model, row.chip, row.context, row.kv): row for row in rows}
    return Table(
        title="Time of a token, ms: computed, nothing measured",
        columns=("model", "chip", "kv", *map(tokens, contexts), "encoding"),
        texts=3,
        rows=[
            (
                *(model, chip, kv),
                *(_range(found.get((model, chip, context, kv))) for context in contexts),
                _encoding(found[model, chip, contexts[-1], kv]),
            )
            for model, chip, kv in distinct((row.model, row.chip, row.kv) for row in rows)
        ],
        note=(
            "f16: mlx-lm's network and cache. Counted: bytes, the kernels' instructions (for "
            "NVIDIA), launches. Assumed, from the first figure to the second: "
            f"{FAST.bandwidth:.0%} to {SLOW.bandwidth:.0%} of bandwidth, {FAST.issue:.0%} to "
            f"{SLOW.issue:.0%} of issue, {FAST.launch_s * 1e6:g} to {SLOW.launch_s * 1e6:g} us a "
            "launch; before and after the window lets go. encoding: of the second, at most tokens."
        ),
    )


def _range(row: RooflineRow | None) -> str:
    if row is None or row.fast_ms is None or row.slow_ms is None or not row.fits:
        return "-"
    return f"{short(row.fast_ms)} to {short(row.slow_ms)}"


def _encoding(row: RooflineRow) -> str:
    if not row.encoding_ms or not row.slow_ms or not row.fits:
        return "-"
    return f"{row.encoding_ms / row.slow_ms:.1%}"


def _cells(f16: RooflineRow | None, ours: RooflineRow | None) -> tuple[str, str, str]:
    both = f16 and ours and f16.fits and ours.fits
    return _speed(f16), _speed(ours), f"{ours.over_f16:.2f}" if ours and both else "-"


def _speed(row: RooflineRow | None) -> str:
    return short(row.tokens_s) if row and row.fits else "-"


def _moved(row: RooflineRow) -> int:
    return row.weight_bytes + row.cache_bytes + row.other_bytes


# No chart: lines of different chips are one line in other units.
VIEW = View(
    name="roofline",
    title="Ceilings of memory bandwidth, computed",
    row=RooflineRow,
    tables=tables,
    findings=findings,
    identity=("model", "chip", "context", "kv"),
    measures=(Measure(field="tokens_s", more_is_better=True),),
)
