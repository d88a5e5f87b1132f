"""List models on this machine and those that can be pulled."""

import argparse

from app.inert import inert_line
from app.streams import print_json


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's flags."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print found models first, then the catalogue's others."""
    from app.console import note
    from models.finding.catalogue import CATALOGUE
    from models.finding.discover import discover, without_files
    from models.finding.source import no_file

    found = discover()
    names = {model.name for model in found}
    others = [entry for entry in CATALOGUE if entry.name not in names]
    for name, blob in without_files().items():
        note(f"{name} {no_file(name, blob)}")
    if args.json:
        listing = {
            "found": [
                {
                    "name": model.name,
                    "bytes": model.size,
                    "origin": model.origin.value,
                    "path": str(model.path),
                }
                for model in found
            ],
            "available": [
                {"name": entry.name, "bytes": entry.size, "about": entry.about} for entry in others
            ],
        }
        print_json(listing)
        return 0
    for model in found:
        print(f"{inert_line(model.name):<40} {model.size / 1e9:6.2f} GB  {model.origin.value}")
    for entry in others:
        print(f"{entry.name:<40} {entry.size / 1e9:6.2f} GB  to pull: {entry.about}")
    return 0
