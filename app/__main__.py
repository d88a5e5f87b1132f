"""`python -m app` and the `ember` script."""

import signal
import sys

from app import streams
from app.cli import run


def main() -> None:
    """Run the command line and exit with its code."""
    streams.prepare()
    code = run(sys.argv[1:])
    # Nothing is left to interrupt; Python's own end would die of a late Ctrl-C.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)


if __name__ == "__main__":
    main()
