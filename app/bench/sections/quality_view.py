"""What the rows of `bench quality` show, and the recommended point."""

from collections.abc import Sequence

from app.bench.sections.quality import QualityRow
from app.bench.settings import BASELINE_KV, QUALITY_HOT, QUALITY_SINKS
from app.bench.showing.chart import Axis, Chart, Scale, Series
from app.bench.showing.table import Table
from app.bench.showing.view import Measure, View
from app.bench.showing.words import percent, short
from kvcache.config import DEFAULT_KV

Rows = Sequence[QualityRow]

# What a user would choose from, most bits first.
CHOSEN = (
    "h8",
    "q8",
    "kvarn4",
    "q4",
    "h4",
    "4.4 bits by layer",
    DEFAULT_KV,
    "hkivi5/turbo3u",
    "hkivi5/trellis3",
    "hkivi4/trellis4",
    "turbo4u",
    "kvarn3/turbo3u",
    "hkivi3/trellis3",
    "3.4 bits by layer",
    "2.6 bits by layer",
)

_COLUMNS = (
    "kv",
    "bits",
    "K bits",
    "V bits",
    "window bits",
    "KL mean",
    "KL median",
    "KL p99.9",
    "KL mean, technical",
    "top-1",
    "ppl",
    "score err",
    "passkeys",
    "KL mean less h4's, 95%",
)


def tables(rows: Rows) -> list[Table]:
    """The chosen few, then all: pairs, codecs alone, other tiers, by rising divergence."""
    own, other = _of_base_tiers(rows), [row for row in rows if not _base_tiers(row)]
    parts = [
        ("Keys and values together", [row for row in own if not row.alone]),
        ("Keys alone, values in f16", [row for row in own if row.kv.endswith("/f16")]),
        ("Values alone, keys in f16", [row for row in own if row.kv.startswith("f16/")]),
        ("Other hot tiers and sinks", other),
    ]
    chosen = [_chosen(rows)] if _find(rows, BASELINE_KV) else []
    return chosen + [_table(title, part) for title, part in parts if part]


def charts(rows: Rows) -> list[Chart]:
    """Bits against divergence, with what nothing else beats."""
    pairs = _pairs(rows)
    front = best(pairs)
    rest = [row for row in pairs if row not in front]
    point = recommended(pairs)
    return [
        Chart(
            name="quality-pareto",
            title="Bits of the cold tier and divergence from the f16 cache",
            x=Axis(label="bits per element, all-in"),
            y=Axis(label="mean KL divergence, nats", scale=Scale.LOG),
            series=[
                Series(
                    name="best compromises",
                    points=[(row.bits, row.kld_mean) for row in front],
                    labels=[row.kv for row in front],
                ),
                Series(
                    name="others",
                    points=[(row.bits, row.kld_mean) for row in rest],
                    line=False,
                ),
                Series(
                    name="recommended",
                    points=[(point.bits, point.kld_mean)] if point else [],
                    line=False,
                ),
            ],
        )
    ]


def findings(rows: Rows) -> list[str]:
    """The front, the recommended point, and what keys and values cost apart."""
    pairs = _pairs(rows)
    found = ["Best compromises, bits and mean KL: " + "; ".join(map(_point, best(pairs))) + "."]
    if (point := recommended(pairs)) is not None:
        found.append(
            f"Recommended: {_point(point)}, the least divergence in no more bits than "
            f"{BASELINE_KV}; against it {_versus(point)}."
        )
        if (default := _find(pairs, DEFAULT_KV)) is not None and point.kv != DEFAULT_KV:
            found.append(f"The default is {_point(default)}; against h4 {_versus(default)}.")
    found += _against(rows, "q4")
    if (thrifty := smallest(pairs)) is not None:
        found.append(f"Fewest bits that are not worse than {BASELINE_KV}: {_point(thrifty)}.")
    keys, values = _find(rows, f"{BASELINE_KV}/f16"), _find(rows, f"f16/{BASELINE_KV}")
    if keys is not None and values is not None and values.kld_mean > 0:
        times = keys.kld_mean / values.kld_mean
        found.append(f"With {BASELINE_KV} keys alone lose {short(times)} times what values lose.")
    first = rows[0]
    found.append(
        f"{first.tokens} positions scored; f16 perplexity {first.f16_ppl:.3f}, "
        f"f16 recalls {first.f16_recall:.0%} of the passkeys."
    )
    return found


def best(rows: Rows) -> list[QualityRow]:
    """What no other row beats in both bits and divergence, fewest bits first."""
    front: list[QualityRow] = []
    for row in sorted(rows, key=lambda row: (row.bits, row.kld_mean)):
        if not front or row.kld_mean < front[-1].kld_mean:
            front.append(row)
    return front


def recommended(rows: Rows) -> QualityRow | None:
    """The least mean divergence in no more bits than the baseline."""
    baseline = _find(rows, BASELINE_KV)
    if baseline is None:
        return None
    affordable = [row for row in rows if row.bits <= baseline.bits]
    return min(affordable, key=lambda row: row.kld_mean)


def smallest(rows: Rows) -> QualityRow | None:
    """The fewest bits whose divergence is not above the baseline's, by its whole interval."""
    equal = [row for row in rows if row.versus_high <= 0]
    return min(equal, key=lambda row: (row.bits, row.kld_mean)) if equal else None


def _chosen(rows: Rows) -> Table:
    found = [row for kv in CHOSEN if (row := _find(rows, kv)) is not None]
    first = rows[0]
    return Table(
        title="Chosen codecs",
        columns=(
            "keys/values",
            "bits",
            "KL mean",
            "KL p99.9",
            "top-1",
            "KL mean, technical",
            "KL p99.9, technical",
            "top-1, technical",
        ),
        rows=[
            (
                f"{row.kv} (default)" if row.kv == DEFAULT_KV else row.kv,
                f"{row.bits:.4g}",
                *_figures(row.kld_mean, row.kld_p999, row.top1),
                *_figures(row.technical_kld_mean, row.technical_kld_p999, row.technical_top1),
            )
            for row in found
        ],
        note=f"{QUALITY_HOT} hot tokens, {QUALITY_SINKS} sinks; {first.tokens} positions scored of "
        f"each text; perplexity of the first under the f16 cache {first.f16_ppl:.2f}.",
    )


def _figures(mean: float | None, p999: float | None, top1: float | None) -> tuple[str, str, str]:
    """Cells of one text; empty where it was not read."""
    if mean is None or p999 is None or top1 is None:
        return "", "", ""
    return f"{mean:.6f}", f"{p999:.6f}", f"{top1:.3f}"


def _table(title: str, rows: Rows) -> Table:
    return Table(
        title=title,
        columns=_COLUMNS,
        rows=[_cells(row) for row in sorted(rows, key=lambda row: row.kld_mean)],
        note="bits: cold tier, all-in. window bits: with sinks and hot tokens, in a full window. "
        "score err: RMS of scaled scores.",
    )


def _cells(row: QualityRow) -> tuple[str, ...]:
    tiers = "" if _base_tiers(row) else f", hot {row.hot}, sinks {row.sinks}"
    return (
        row.kv + tiers,
        f"{row.bits:.3g}",
        f"{row.key_bits:.3g}",
        f"{row.value_bits:.3g}",
        f"{row.window_bits:.3g}",
        _kl(row.kld_mean),
        _kl(row.kld_median),
        _kl(row.kld_p999),
        "" if row.technical_kld_mean is None else _kl(row.technical_kld_mean),
        f"{row.top1:.3f}",
        f"{row.ppl:.3f}",
        f"{row.score_rms:.4f}",
        f"{row.recall:.0%}",
        f"{row.versus_low:+.5f} to {row.versus_high:+.5f}",
    )


def _kl(value: float) -> str:
    return f"{value:.5f}"


def _versus(row: QualityRow) -> str:
    """Relative to the baseline's mean, which is the row's own less the difference."""
    baseline = max(row.kld_mean - row.versus, 1e-12)
    interval = f"{row.versus_low:+.5f} to {row.versus_high:+.5f}"
    return f"{percent(row.versus / baseline)} (difference {interval} with 95% confidence)"


def _against(rows: Rows, kv: str) -> list[str]:
    """The default's mean divergence against another codec's."""
    ours, other = _find(rows, DEFAULT_KV), _find(rows, kv)
    if ours is None or other is None or not other.kld_mean:
        return []
    share = percent(ours.kld_mean / other.kld_mean - 1)
    return [f"The default, {_point(ours)}, against {_point(other)}: {share}."]


def _point(row: QualityRow) -> str:
    return f"{row.kv} ({row.bits:.3g} bits, {_kl(row.kld_mean)})"


def _find(rows: Rows, kv: str) -> QualityRow | None:
    return next((row for row in rows if row.kv == kv and _base_tiers(row)), None)


def _pairs(rows: Rows) -> list[QualityRow]:
    return [row for row in _of_base_tiers(rows) if not row.alone]


def _of_base_tiers(rows: Rows) -> list[QualityRow]:
    return [row for row in rows if _base_tiers(row)]


def _base_tiers(row: QualityRow) -> bool:
    return (row.hot, row.sinks) == (QUALITY_HOT, QUALITY_SINKS)


VIEW = View(
    name="quality",
    title="What each codec changes",
    row=QualityRow,
    tables=tables,
    charts=charts,
    findings=findings,
    identity=("kv", "hot", "sinks", "tokens"),
    measures=(
        Measure(field="bits"),
        Measure(field="kld_mean"),
        Measure(field="kld_p999"),
        Measure(field="technical_kld_mean"),
        Measure(field="ppl"),
        Measure(field="top1", more_is_better=True),
        Measure(field="recall", more_is_better=True),
        Measure(field="score_rms"),
    ),
)
