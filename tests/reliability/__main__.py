"""Put what these programs recorded into assets/results/reliability.json and .md.

python -m tests.reliability FILE ...

What they did not try again stays.
"""

import argparse
import sys
from pathlib import Path

from app.bench.environment import environment
from app.bench.readme import RESULTS
from app.bench.showing.document import document, read, write
from tests.reliability.record import kept
from tests.reliability.view import VIEW

_ORDER = ("fuzz", "walk", "soak", "kills", "faults", "monkey", "mutants")


def main() -> int:
    """Write them; of each part, the newest figures of the last file count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("records", nargs="*", type=Path, metavar="FILE")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER")
    arguments = parser.parse_args()
    published = arguments.out / f"{VIEW.name}.json"
    before = VIEW.from_json(read(published)["rows"]) if published.exists() else []
    told_of = [*before, *(row for path in arguments.records for row in kept(path))]
    newest = {(row.program, row.what): row for row in told_of}
    rows = sorted(newest.values(), key=lambda row: _ORDER.index(row.program))
    told = environment() | {"settings": {"model": "tiny ones of random weights"}}
    write(arguments.out, VIEW, document(VIEW.as_json(rows), told, [VIEW]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
