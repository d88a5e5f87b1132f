"""Answers without end in a small window, and what became of the process.

    python -m tests.soak [--minutes N] [--model MODEL]

Ends with 1 where memory grew, or the last tenth was slower than the first; and by an error where
a number was not finite.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from models.finding.source import locate
from tests.app.conftest import write_tiny
from tests.soak.answering import Soaked, soak

# The last tenth's pace to the first's, in seconds of a processor.
SLOWER = 1.05


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--model", help="by default a tiny one of random weights")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.gguf"
        model = locate(arguments.model) if arguments.model else write_tiny(path)
        found = soak(model, seconds=60 * arguments.minutes)
    print(found)
    return int(not _is_sound(found))


def _is_sound(found: Soaked) -> bool:
    return not found.has_grown and found.pace < SLOWER


if __name__ == "__main__":
    sys.exit(main())
