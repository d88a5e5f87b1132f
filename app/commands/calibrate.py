"""Count what a model's keys are encoded by, which chats with small models do by themselves."""

import argparse

from app import options
from app.streams import print_json


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's flags."""
    parser.add_argument(
        "name", nargs="?", default=options.DEFAULT_MODEL, metavar="MODEL", help="as for run"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Read the text that comes with ember, and keep what was counted; again where it was."""
    from app.interrupt import cancel_on_interrupt
    from app.kernels import compile_with_bar
    from app.progress import token_bar
    from app.session import COUNTING, fetch_with_bar
    from kvcache import Backend
    from models.calibrate import TOKENS, count, keep
    from models.loader import load

    path = fetch_with_bar(args.name)
    compile_with_bar(Backend.AUTO)
    loaded = load(path)
    with token_bar(COUNTING) as report, cancel_on_interrupt() as cancel:

        def progress(done: int, total: int) -> None:
            cancel.check()
            report(done, total)

        where = keep(count(loaded, progress=progress), loaded)
    if args.json:
        print_json({"path": str(where), "tokens": TOKENS, "bytes": where.stat().st_size})
    else:
        print(f"{where} ({where.stat().st_size / 1e6:.1f} MB)")
    return 0
