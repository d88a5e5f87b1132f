"""`python -m app` and the `ember` script."""

import signal
import sys


def main() -> None:
    """Run the command line and exit with its code."""
    code = _run(sys.argv[1:])
    # Nothing is left to interrupt; Python's own end would die of a late Ctrl-C.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    try:
        # The imports take a moment, in which Ctrl-C is heard as it is afterwards.
        from app import cli, streams

        streams.prepare()
        return cli.run(arguments)
    except KeyboardInterrupt:
        print("ember: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    main()
