"""Measure speed on this machine, with --peers beside llama.cpp and mlx-lm."""

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from app import options

if TYPE_CHECKING:
    from app.bench.case import Case
    from app.bench.speed import Row


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's flags."""
    parser.add_argument("section", nargs="?", choices=["speed"], default="speed")
    parser.add_argument("-m", "--model", default=options.DEFAULT_MODEL, metavar="MODEL")
    parser.add_argument(
        "--kv",
        type=options.codecs,
        action="append",
        metavar="K[/V]",
        help="codecs of ember's cold tier; repeatable (default: ember's default, and f16)",
    )
    parser.add_argument("--backend", choices=["auto", "reference", "cpu", "gpu"], default="auto")
    parser.add_argument("--threads", type=options.whole(1), help="default: physical cores")
    parser.add_argument("--pp", type=options.whole(1), default=512, help="prompt tokens to read")
    parser.add_argument("--tg", type=options.whole(1), default=64, help="tokens to generate")
    parser.add_argument(
        "--depths", type=_depths, default=(0, 2048), help="tokens held before (default: 0,2048)"
    )
    parser.add_argument("--reps", type=options.whole(1), default=3, help="default: 3")
    parser.add_argument("--peers", action="store_true", help="measure llama.cpp and mlx-lm too")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print a table, or JSON; what is being measured goes to stderr."""
    from app.bench import speed
    from app.bench.environment import environment
    from app.session import fetch_with_bar

    config = speed.SpeedConfig(
        model=str(fetch_with_bar(args.model)),
        kv=tuple(args.kv or [options.DEFAULT_KV, "f16"]),
        backend=args.backend,
        threads=args.threads or 0,
        depths=args.depths,
        pp=args.pp,
        tg=args.tg,
        reps=args.reps,
        peers=args.peers,
    )
    rows = speed.run(config, _tell)
    if args.json:
        print(json.dumps(speed.as_json(rows, environment()), ensure_ascii=False))
    else:
        _print(rows, environment())
    return 0


def _depths(text: str) -> tuple[int, ...]:
    try:
        depths = tuple(int(part) for part in text.split(","))
    except ValueError:
        depths = (-1,)
    if min(depths) < 0:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected numbers such as 0,2048")
    return depths


def _tell(case: "Case", rep: int) -> None:
    print(
        f"ember: {case.engine.value} {case.kv} at depth {case.depth}, run {rep + 1}",
        file=sys.stderr,
    )


def _print(rows: "list[Row]", environment: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(caption=", ".join(f"{key} {value}" for key, value in environment.items()))
    for name in ("engine", "kv", "backend", "threads", "test @ depth"):
        table.add_column(name)
    for name in ("tok/s", "sd", "p99/median", "first token s", "KV MiB", "peak RSS MiB"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row.engine,
            row.kv,
            row.backend,
            str(row.threads or "-"),
            f"{row.test} @ {row.depth}",
            f"{row.tps:.1f}",
            f"{row.tps_sd:.1f}",
            f"{row.p99_over_median:.2f}" if row.p99_over_median else "",
            f"{row.ttft_s:.2f}",
            f"{row.kv_bytes / 2**20:.1f}",
            f"{row.peak_rss_bytes / 2**20:.0f}",
        )
    Console(width=None if sys.stdout.isatty() else 140).print(table)
