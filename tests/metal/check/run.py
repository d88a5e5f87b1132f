"""The sections in turn, each within its time; whatever ends it, what was done is kept and shown."""

import argparse
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx

from app.session import fetch_with_bar
from kvcache import Backend, EmberError
from kvcache.config import on_gpu
from kvcache.gpu.kernel import Launcher, launch_on_device
from tests.metal.check import attention, bandwidth, correctness, encoding, products, tokens
from tests.metal.check.report import ROWS, Report
from tests.metal.check.rows import BandwidthRow, Row
from tests.metal.check.sizes import Sizes

_INTERRUPTED = 130
# Seconds, after which a section begins nothing more: all together less than five minutes. Only
# correctness of the default configuration, half of the cases, is whole however long it takes.
_MOST_SECONDS = {
    "correctness": 130.0,
    "bandwidth": 5.0,
    "kernels": 20.0,
    "products": 20.0,
    "attention": 40.0,
    "encoding": 10.0,
    "tokens": 55.0,
}


@dataclass(frozen=True, kw_only=True)
class Device:
    """What is checked. launch, backend: others in tests.

    seconds: of each section, at most. whole: cases that are checked even so.
    """

    launch: Launcher = launch_on_device
    backend: Backend = Backend.GPU
    sizes: Sizes = field(default_factory=Sizes)
    seconds: dict[str, float] = field(default_factory=lambda: _MOST_SECONDS)
    cases: dict[str, correctness.Check] = field(default_factory=correctness.cases)
    whole: Collection[str] = field(default_factory=correctness.of_default)

    def sections(self, report: Report) -> dict[str, Callable[[], Iterator[Row]]]:
        """What gives the rows of each; shares are of the bandwidth that `report` has."""
        launch, sizes = self.launch, self.sizes
        return {
            "correctness": lambda: correctness.run(launch, self.cases),
            "bandwidth": lambda: bandwidth.run(sizes),
            "kernels": lambda: attention.run_kernels(launch, sizes, _reached(report)),
            "products": lambda: products.run(launch, sizes, _reached(report)),
            "attention": lambda: attention.run_whole(launch, sizes, _reached(report)),
            "encoding": lambda: encoding.run(self.backend, sizes),
            "tokens": lambda: tokens.run(sizes.model, self.backend, sizes, report.tell_of_tokens),
        }

    def owes(self, section: str, rows: Sequence[Row]) -> bool:
        """Whether a section that has so many rows still lacks some that must be there."""
        return section == "correctness" and any(
            name in self.whole for name in list(self.cases)[len(rows) :]
        )


def check(device: Device, report: Report, names: Sequence[str]) -> int:
    """Run the sections called `names`; the exit code. Ctrl-C ends it, and keeps what was done."""
    try:
        # Beforehand, as a download has no place in a section's time.
        names = [name for name in names if name != "tokens" or _is_here(device.sizes.model, report)]
        for name in names:
            print(f"{name} ...", file=sys.stderr, flush=True)
            _section(name, device, report)
    except KeyboardInterrupt:
        report.interrupted = True
    report.write()
    print(report.markdown())
    print(f"all figures: {report.file}", file=sys.stderr)
    return _INTERRUPTED if report.interrupted else int(report.wrong > 0)


def _is_here(model: str, report: Report) -> bool:
    try:
        fetch_with_bar(model)
    except EmberError as problem:
        report.notes["tokens"] = f"left out: {problem}"
        return False
    return True


def _section(name: str, device: Device, report: Report) -> None:
    began = time.perf_counter()
    rows = report.rows.setdefault(name, [])
    try:
        for row in device.sections(report)[name]():
            rows.append(row)
            report.seconds[name] = time.perf_counter() - began
            report.write()
            if report.seconds[name] > device.seconds[name] and not device.owes(name, rows):
                report.notes[name] = f"cut off after {report.seconds[name]:.0f} s"
                if name == "correctness" and len(rows) < len(device.cases):
                    report.notes[name] += (
                        f": {len(rows)} of {len(device.cases)} cases, the default "
                        "configuration's all among them"
                    )
                return
    # MLX's two, for what this GPU refuses: the other sections may still run.
    except (RuntimeError, ValueError, EmberError) as problem:
        said = str(problem).strip().partition("\n")[0]
        report.notes[name] = f"ended: {said}"


def _reached(report: Report) -> float:
    """GB/s: the most that was measured; without a measurement shares are of 1 GB/s."""
    rows = report.rows.get("bandwidth", ())
    return max((row.gb_s for row in rows if isinstance(row, BandwidthRow)), default=1.0)


def main(words: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make metal-check", description=__doc__)
    parser.add_argument("--only", metavar="NAME,NAME", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--out", type=Path, default=Path("metal-check.json"), metavar="FILE")
    parser.add_argument("--no-limit", action="store_true", help="let each section end by itself")
    args = parser.parse_args(words)
    names = args.only.split(",") if args.only else list(ROWS)
    if unknown := [name for name in names if name not in ROWS]:
        parser.error(f"got section {unknown[0]!r}, expected some of {', '.join(ROWS)}")
    if not args.out.parent.is_dir():
        parser.error(f"got --out {args.out}, but there is no folder {args.out.parent}")
    if not on_gpu():
        print(
            "MLX sees no GPU here: run this on a Mac with Apple silicon, or on Linux with an "
            "NVIDIA GPU by `make cuda-check`",
            file=sys.stderr,
        )
        return 1
    limits = dict.fromkeys(ROWS, float("inf")) if args.no_limit else _MOST_SECONDS
    if "bandwidth" not in names and {"kernels", "products", "attention"} & set(names):
        names = ["bandwidth", *names]
    mx.random.seed(0)
    return check(Device(seconds=limits), Report(file=args.out), names)
