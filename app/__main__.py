"""`python -m app` and the `ember` script."""

import gc
import sys

from app.interrupt import end, exit_on_kill, hear_again, ignore_signals

_OWN = "app", "kvcache", "models"
_INSTALL = (
    "after `make chat` type `source .venv/bin/activate`, or call .venv/bin/ember; "
    "without make, `pip install -e .` in ember's folder"
)
# Imports make objects that stay: no look for garbage among them before the chat's prompt.
_YOUNG, _MIDDLE, _OLD = 150_000, 20, 10


def main() -> None:
    """Run the command line and exit with its code."""
    gc.set_threshold(_YOUNG, _MIDDLE, _OLD)
    exit_on_kill()
    hear_again()
    code = _run(sys.argv[1:])
    # Nothing is left to interrupt; Python's own end would die of a late Ctrl-C.
    ignore_signals()
    end(code)


def _run(arguments: list[str]) -> int:
    try:
        # The imports take a moment, in which Ctrl-C is heard as it is afterwards.
        from app import cli, streams

        streams.prepare()
        return cli.run(arguments)
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] in _OWN:
            raise
        print(f"ember: error: this Python has no {error.name}: {_INSTALL}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ember: interrupted", file=sys.stderr)
        return 130
    except SystemExit as ended:  # by a kill
        return int(ended.code or 0)


if __name__ == "__main__":
    main()
