"""What the rows of `bench claim` show, and the verdict."""

from collections.abc import Sequence
from statistics import fmean

from app.bench.sections.claim import ClaimRow
from app.bench.showing.chart import Axis, Chart, Scale, Series
from app.bench.showing.table import Table
from app.bench.showing.view import Measure, Ruling, Verdict, View
from app.bench.showing.words import megabytes, short

Rows = Sequence[ClaimRow]
Ratios = Sequence[tuple[int, float]]  # tokens generated, times faster

# What was claimed, in times.
LOW, HIGH = 10.0, 100.0


def tables(rows: Rows) -> list[Table]:
    """Operations, seconds and bytes by length."""
    return [_operations(rows), _seconds(rows), _bytes(rows)]


def charts(rows: Rows) -> list[Chart]:
    """Ratios by length, and reading against recomputing."""
    return [
        Chart(
            name="claim-ratio",
            title="How many times faster with a KV cache",
            x=Axis(label="tokens generated", scale=Scale.TOKENS),
            y=Axis(label="times", scale=Scale.LOG),
            series=[
                _series("operations counted", [(r.length, r.ops_ratio) for r in rows]),
                _series("measured, f16 cache", [(r.length, r.ratio) for r in rows]),
                _series("measured, two tiers", [(r.length, r.tiers_ratio) for r in rows]),
                *(
                    Series(name=name, points=[(r.length, times) for r in rows], bound=True)
                    for name, times in (("claimed, at least", LOW), ("claimed, at most", HIGH))
                ),
            ],
        ),
        Chart(
            name="claim-memory",
            title="Reading the cache or computing it anew, per token",
            x=Axis(label="tokens generated", scale=Scale.TOKENS),
            y=Axis(label="seconds", scale=Scale.LOG),
            series=[
                _series("read the f16 cache", [(r.length, r.read_s) for r in rows]),
                _series("compute it anew", [(r.length, r.recompute_s) for r in rows]),
            ],
        ),
    ]


def findings(rows: Rows) -> list[str]:
    """The verdicts, and why they differ."""
    return [
        *(sentence(*ratios) for ratios in _held_against(rows)),
        "The ratio grows with the length, so no single range can hold: without a cache the "
        "work of n tokens grows with n squared, with it with n.",
        "The count leaves out that a pass over many tokens is worth more per second than a "
        "pass over one: both read all weights once, and one token leaves the arithmetic "
        "idle while they come. So far fewer times are saved than operations.",
        _memory_side(rows[-1]),
    ]


def verdicts(rows: Rows) -> list[Verdict]:
    """On the operations counted, an f16 cache and two tiers."""
    return [verdict(*ratios) for ratios in _held_against(rows)]


def _held_against(rows: Rows) -> list[tuple[str, Ratios]]:
    """What the claim is held against: a name, and a ratio at each length."""
    shape, model = rows[0].shape, rows[0].model
    return [
        (f"operations counted for {shape}", [(row.length, row.ops_ratio) for row in rows]),
        (
            f"generation measured with {model}, f16 cache",
            [(row.length, row.ratio) for row in rows if row.ratio is not None],
        ),
        (
            f"generation measured with {model}, two tiers",
            [(row.length, row.tiers_ratio) for row in rows if row.tiers_ratio is not None],
        ),
    ]


def verdict(what: str, ratios: Ratios) -> Verdict:
    """VERIFIED where every length lies in the claimed range, else FALSIFIED."""
    inside = [length for length, ratio in ratios if LOW <= ratio <= HIGH]
    ruling = Ruling.VERIFIED if len(inside) == len(ratios) else Ruling.FALSIFIED
    return Verdict(
        what=what,
        ruling=(ruling if ratios else Ruling.NOT_MEASURED).value,
        average=fmean(ratio for _, ratio in ratios) if ratios else None,
        holds_from=inside[0] if inside else None,
        holds_to=inside[-1] if inside else None,
    )


def sentence(what: str, ratios: Ratios) -> str:
    """The verdict with its figures, and where the claim holds."""
    found = verdict(what, ratios)
    if found.average is None:
        return f"{what}: {found.ruling}."
    lengths = f"{ratios[0][0]} to {ratios[-1][0]} tokens"
    told = ", ".join(f"{short(ratio)}x at {length}" for length, ratio in ratios)
    said = f"{found.ruling.upper()} for {what}, {lengths}: {told}; average {short(found.average)}x"
    if found.ruling == Ruling.VERIFIED.value:
        return f"{said}."
    if found.holds_from is None:
        return f"{said}; it holds at none of them."
    return f"{said}; it holds from {found.holds_from} to {found.holds_to}."


def _memory_side(row: ClaimRow) -> str:
    times = row.recompute_s / row.read_s
    return (
        f"What a cache costs: at {row.length} tokens {row.shape} holds "
        f"{megabytes(row.cache_bytes)} MB of keys and values in f16 "
        f"({megabytes(row.tiers_bytes)} MB in two tiers) and reads them for every token; that "
        f"takes {short(1000 * row.read_s)} ms here, computing them anew "
        f"{short(row.recompute_s)} s: {short(times)} times as long."
    )


def _operations(rows: Rows) -> Table:
    return Table(
        title=f"Operations, {rows[0].shape}, counted",
        columns=("tokens", "no cache, 1e9", "cache, 1e9", "ratio"),
        texts=0,
        rows=[
            (
                f"{row.length:,}",
                short(row.ops_no_cache / 1e9),
                short(row.ops_cache / 1e9),
                f"{short(row.ops_ratio)}x",
            )
            for row in rows
        ],
        note="A multiplication and an addition are two. All layers and the output layer.",
    )


def _seconds(rows: Rows) -> Table:
    return Table(
        title=f"Seconds, {rows[0].model}, measured",
        columns=("tokens", "no cache", "f16 cache", "two tiers", "ratio", "ratio, tiers"),
        texts=0,
        rows=[
            (
                f"{row.length:,}",
                short(row.no_cache_s),
                short(row.cache_s),
                short(row.tiers_s),
                "-" if row.ratio is None else f"{short(row.ratio)}x",
                "-" if row.tiers_ratio is None else f"{short(row.tiers_ratio)}x",
            )
            for row in rows
        ],
        note="No cache: all tokens so far in one pass, by the same kernels. "
        "A dash: the time did not allow it.",
    )


def _bytes(rows: Rows) -> Table:
    return Table(
        title=f"Memory, {rows[0].shape}, by formula at this machine's measured rates",
        columns=(
            "tokens",
            "f16 cache, MB",
            "two tiers, MB",
            "read per token, MB",
            "read the cache, ms",
            "compute it anew, ms",
        ),
        texts=0,
        rows=[
            (
                f"{row.length:,}",
                megabytes(row.cache_bytes),
                megabytes(row.tiers_bytes),
                megabytes(row.read_bytes),
                short(1000 * row.read_s),
                short(1000 * row.recompute_s),
            )
            for row in rows
        ],
        note="Read per token: weights and f16 cache.",
    )


def _series(name: str, points: Sequence[tuple[int, float | None]]) -> Series:
    return Series(name=name, points=[(x, y) for x, y in points if y is not None])


VIEW = View(
    name="claim",
    title="Is a KV cache 10 to 100 times faster?",
    row=ClaimRow,
    tables=tables,
    charts=charts,
    findings=findings,
    verdicts=verdicts,
    identity=("shape", "model", "length"),
    measures=(
        Measure(field="ratio", more_is_better=True),
        Measure(field="tiers_ratio", more_is_better=True),
        Measure(field="cache_s"),
        Measure(field="tiers_s"),
    ),
)
