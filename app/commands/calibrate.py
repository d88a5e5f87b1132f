"""Count what a model's keys are encoded by, which chats with small models do by themselves."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from app import options
from app.streams import print_json

if TYPE_CHECKING:
    from models.loader import LoadedModel


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's flags."""
    parser.add_argument(
        "name", nargs="?", default=options.DEFAULT_MODEL, metavar="MODEL", help="as for run"
    )
    parser.add_argument(
        "--by-layer",
        action="store_true",
        help="measure too what each layer loses in few bits, for --kv BITS: some minutes",
    )
    parser.add_argument(
        "--force", action="store_true", help="load what does not fit in this machine's memory"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Read the text that comes with ember, and keep what was counted; again where it was."""
    from app.cache_flags import load_options
    from app.kernels import compiling, wanted
    from app.session import fetch_with_bar, load_admitted
    from kvcache import CacheConfig
    from models.calibrate import TOKENS

    unencoded = CacheConfig(keys="f16", values="f16", max_tokens=2 * TOKENS, beyond_context=True)
    with compiling(wanted(unencoded, args.name)):
        path = fetch_with_bar(args.name)
    loaded, _ = load_admitted(path, unencoded, load_options(args))
    where = _count(loaded)
    found = {"path": str(where), "tokens": TOKENS, "bytes": where.stat().st_size}
    if args.by_layer:
        found["by_layer"] = str(_measure(loaded))
    if args.json:
        print_json(found)
    else:
        print(f"{where} ({where.stat().st_size / 1e6:.1f} MB)")
        if args.by_layer:
            print(found["by_layer"])
    return 0


def _count(loaded: "LoadedModel") -> Path:
    """The metric of each way that the model's queries turn; where the one of long contexts is."""
    from app.interrupt import cancel_on_interrupt
    from app.progress import token_bar
    from app.session import COUNTING
    from models.calibrate import count, keep

    with token_bar(COUNTING) as report, cancel_on_interrupt() as cancel:

        def progress(done: int, total: int) -> None:
            cancel.check()
            report(done, total)

        for context in loaded.model.contexts:
            loaded.model.set_context(context)
            where = keep(count(loaded, progress=progress), loaded)
    return where


def _measure(loaded: "LoadedModel") -> Path:
    """The table of losses by layer; returns where it is."""
    from app import layer_losses
    from app.console import note
    from app.interrupt import cancel_on_interrupt
    from app.progress import step_bar
    from models.calibrate import is_wanted, kept

    metric = kept(loaded) if is_wanted() else None
    path = layer_losses.path_of(loaded.identity, plain=metric is None)
    done, whole = 0, layer_losses.readings(loaded.model.shape.layers)
    note(f"measuring each layer alone: a text is read {whole} times, which takes some minutes")
    with step_bar("measuring layer by layer") as report, cancel_on_interrupt() as cancel:

        @contextmanager
        def step(_label: str) -> Iterator[None]:
            nonlocal done
            cancel.check()
            report(done, whole)
            yield
            done += 1

        layer_losses.keep(layer_losses.measure(loaded, metric, step), path)
    return path
