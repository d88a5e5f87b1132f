"""`python -m app` and the `ember` script."""

import sys

from app.cli import run
from app.interrupt import end, exit_on_kill, ignore_signals


def main() -> None:
    """Run the command line and exit with its code."""
    exit_on_kill()
    try:
        code = run(sys.argv[1:])
    except SystemExit as ended:  # by a kill, or by argparse, which has said why
        code = int(ended.code or 0)
    # Nothing is left to interrupt; Python's own end would die of a late Ctrl-C.
    ignore_signals()
    end(code)


if __name__ == "__main__":
    main()
