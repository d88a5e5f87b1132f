"""What the rows of `bench speed` show."""

from collections.abc import Iterator, Sequence
from string import ascii_lowercase

from app.bench.engines.case import NO_CACHE
from app.bench.sections.speed_rows import SpeedRow
from app.bench.showing.chart import Axis, Chart, curves
from app.bench.showing.table import Table
from app.bench.showing.view import Measure, View
from app.bench.showing.words import distinct, megabytes, short

Rows = Sequence[SpeedRow]


def tables(rows: Rows) -> list[Table]:
    """All engines in one, a table for each test, then the short protocol."""
    tests = distinct((row.test, row.depth, row.batch) for row in rows if not _is_short(row))
    found = [_table(test, rows) for test in tests]
    if len(tests) > 2:
        found = [_together(rows), *found]
    brief = [row for row in rows if _is_short(row)]
    if brief:
        found.append(_short_table(brief))
    peers = [row for row in rows if row.tried]
    return [*found, _settings_table(peers)] if peers else found


def charts(rows: Rows) -> list[Chart]:
    """Generation by depth, where there are several."""
    generating = [row for row in rows if row.test.startswith("tg") and row.batch == 1]
    found = curves((f"{row.engine} {row.kv}", (row.depth, row.tps)) for row in generating)
    return [
        Chart(
            name="speed",
            title="Tokens per second while generating",
            x=Axis(label="tokens held before"),
            y=Axis(label="tokens per second"),
            series=[each for each in found if len(each.points) > 1],
        )
    ]


def findings(rows: Rows) -> list[str]:
    """ember's first cache against the best peer, and what a cache is worth."""
    found = []
    for test, depth, batch in distinct(_test(row) for row in rows):
        here = [row for row in rows if _test(row) == (test, depth, batch)]
        ours = [row for row in here if row.engine == "ember" and row.kv != NO_CACHE]
        peers = [row for row in here if row.engine != "ember"]
        if ours and peers:
            best = max(peers, key=_most)
            setting = f" ({best.setting})" if best.setting else ""
            found.append(
                f"{test} at depth {depth}: ember {ours[0].kv} {short(ours[0].tps)} tok/s, "
                f"{best.engine} {best.kv} {short(_most(best))}{setting}: "
                f"{short(ours[0].tps / _most(best))} times as fast."
            )
        without = [row for row in here if row.kv == NO_CACHE]
        if ours and without:
            times = without[0].seconds / ours[0].seconds
            found.append(f"{test}: a cache ({ours[0].kv}) makes it {short(times)} times faster.")
    return [*found, *_fell_short(rows)]


def _most(row: SpeedRow) -> float:
    """What a peer is compared at: where its runs fell short of its trial, the trial."""
    return row.tried[row.setting] if row.falls_short else row.tps


def _fell_short(rows: Rows) -> Iterator[str]:
    """A line for each peer's row that is below its own trial."""
    for row in (row for row in rows if row.falls_short):
        yield (
            f"{row.test} at depth {row.depth}: {row.engine} {row.kv} gave {short(_most(row))} "
            f"tok/s in its trial, {short(row.tps)} in the {row.reps} runs after it."
        )


def _test(row: SpeedRow) -> tuple[str, int, int]:
    return row.test, row.depth, row.batch


def _together(rows: Rows) -> Table:
    """Engines by tests: prompts at the start, generation at every depth; memory at the deepest."""
    single = [row for row in rows if row.batch == 1 and not _is_short(row)]
    told = [row for row in single if row.depth == 0 or row.test.startswith("tg")]
    tests = distinct((row.test, row.depth) for row in told)
    deepest = max(row.depth for row in single)
    marks = _marks(told)
    cells = {
        (row.engine, row.kv, row.test, row.depth): f"{short(row.tps)} {marks[row.setting]}".strip()
        for row in told
    }
    sizes = {(row.engine, row.kv): row for row in single if row.depth == deepest}
    legend = "".join(f" {mark}: {setting}." for setting, mark in marks.items() if mark)
    return Table(
        title="Tokens per second",
        columns=(
            "engine",
            "kv",
            *(f"{test} at {depth}" if depth else test for test, depth in tests),
            f"KV MB at {deepest}",
            "peak RSS MB",
        ),
        texts=2,
        rows=[
            (*name, *(cells.get((*name, *test), "") for test in tests), *_size(sizes.get(name)))
            for name in distinct((row.engine, row.kv) for row in single)
        ],
        note=_note(single) + legend,
    )


def _marks(rows: Rows) -> dict[str, str]:
    """A letter for each setting that peers were measured with; none for ember."""
    settings = distinct(row.setting for row in rows if row.setting)
    letters = dict(zip(settings, ascii_lowercase, strict=False))
    return {row.setting: letters.get(row.setting, "") for row in rows}


def _settings_table(rows: Rows) -> Table:
    return Table(
        title="Peers: the settings tried, tokens per second in a short trial",
        columns=("engine", "kv", "test", "depth", "shown", "tried"),
        texts=6,
        rows=[
            (
                row.engine,
                row.kv,
                row.test,
                str(row.depth),
                row.setting,
                "; ".join(f"{setting}: {short(speed)}" for setting, speed in row.tried.items()),
            )
            for row in rows
        ],
        note="A peer's row is measured with the setting that was the fastest in its own test.",
    )


def _size(row: SpeedRow | None) -> tuple[str, str]:
    return ("", "") if row is None else (megabytes(row.kv_bytes), f"{row.peak_rss_bytes / 1e6:.0f}")


def _note(rows: Rows) -> str:
    engines = "; ".join(distinct(f"{row.engine}: {row.settings}" for row in rows))
    threads = ", ".join(distinct(str(row.threads) for row in rows if row.threads))
    return (
        f"{rows[0].model}, {threads or 'default'} threads. pp: a prompt is read, tg: tokens are "
        f"generated, after so many held. Medians; runs in turns, each in a process of its own. "
        f"{engines}.{_offered(rows)}"
    )


def _offered(rows: Rows) -> str:
    """What each peer was tried with, of which a row shows the best."""
    told = ""
    for engine in distinct(row.engine for row in rows if row.tried):
        values: dict[str, dict[str, None]] = {}
        for row in rows:
            for part in (part for name in row.tried for part in name.split(", ")):
                if row.engine == engine:
                    name, value = part.rsplit(" ", 1)
                    values.setdefault(name, {})[value] = None
        tried = ", ".join(
            f"{name} {'/'.join(sorted(found, key=lambda value: (len(value), value)))}"
            for name, found in values.items()
        )
        told += f" {engine}: each figure at the best of {tried}."
    return told


def _table(test: tuple[str, int, int], rows: Rows) -> Table:
    name, depth, batch = test
    here = [row for row in rows if (row.test, row.depth, row.batch) == test]
    share = ("of bandwidth",) if any(row.read_share for row in here) else ()
    return Table(
        title=f"{name} at depth {depth}" + (f", batch {batch}" if batch > 1 else ""),
        columns=(
            "engine",
            "kv",
            "backend",
            "threads",
            "tok/s",
            "mean",
            "sd",
            "runs",
            "p99/median",
            *share,
            "first token s",
            "KV MB",
            "KV bytes/token",
            "peak RSS MB",
            "setting",
        ),
        texts=3,
        rows=[_cells(row, share=bool(share)) for row in here],
        note=_note(here),
    )


def _cells(row: SpeedRow, *, share: bool) -> tuple[str, ...]:
    read = f"{row.read_share:.0%}" if row.read_share else ""
    return (
        row.engine,
        row.kv,
        row.backend,
        str(row.threads or "-"),
        short(row.tps),
        short(row.tps_mean),
        short(row.tps_sd),
        str(row.reps),
        f"{row.p99_over_median:.2f}" if row.p99_over_median else "",
        *((read,) if share else ()),
        f"{row.ttft_s:.2f}",
        megabytes(row.kv_bytes),
        f"{row.kv_token_bytes:,.0f}",
        f"{row.peak_rss_bytes / 1e6:.0f}",
        row.setting,
    )


def _short_table(rows: Rows) -> Table:
    return Table(
        title="Short protocol: a prompt of 16 tokens, then",
        columns=("engine", "kv", "tokens", "seconds", "tok/s", "s/token", "peak RSS MB"),
        texts=2,
        rows=[
            (
                row.engine,
                row.kv,
                row.test.removeprefix("gen"),
                short(row.seconds),
                short(row.tps),
                short(1 / row.tps),
                f"{row.peak_rss_bytes / 1e6:.0f}",
            )
            for row in rows
        ],
        note="kv none: no cache, all tokens computed anew for each. Seconds include the prompt.",
    )


def _is_short(row: SpeedRow) -> bool:
    return row.test.startswith("gen")


VIEW = View(
    name="speed",
    title="Speed",
    row=SpeedRow,
    tables=tables,
    charts=charts,
    findings=findings,
    identity=("engine", "model", "kv", "backend", "threads", "test", "depth", "batch"),
    measures=(
        Measure(field="tps", more_is_better=True, spread="tps_sd"),
        Measure(field="ttft_s"),
        Measure(field="kv_bytes"),
        Measure(field="peak_rss_bytes"),
    ),
)
