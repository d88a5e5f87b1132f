"""What a start costs until the prompt takes keys: `python -m tests.app.tui.start_up [MODEL]`.

Runs the real chat on a pseudo-terminal, with folders of its own, the kernels compiled and the
model in the page cache before, and counts the processor time of its process until a key that was
typed is drawn. Takes the least of several starts: what other programs cost is no part of it.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

from models import load
from tests.app.tui.timed_terminal import TimedTerminal

_PATIENCE = 60.0
# Of the welcome, which is drawn whether a model is loaded or not yet.
_PROMPT = b"attaches a file"


def seconds(model: str) -> float:
    """Processor time of one start."""
    with TimedTerminal("app", ["-m", model]) as terminal:
        if not terminal.drain(time.monotonic() + _PATIENCE, until=_PROMPT):
            raise RuntimeError("no prompt was drawn")
        if not terminal.type("~~Q"):
            raise RuntimeError("a key was not drawn")
        taken = terminal.cpu_seconds()
        terminal.type("\x15\x11")  # Ctrl-U, Ctrl-Q
    return taken


def main() -> None:
    """Print the least and the middle of some starts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--starts", type=int, default=5)
    args = parser.parse_args()
    path = str(load(args.model).path)
    # A user's Python compiles each file once.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME"):
            os.environ[name] = str(Path(folder) / name)
        found = sorted(seconds(path) for _ in range(args.starts))
    print(
        f"start to prompt: {found[0]:.2f} s of processor time, middle {found[len(found) // 2]:.2f}"
    )


if __name__ == "__main__":
    main()
