"""Delete a model that ember downloaded."""

import argparse

from app.inert import inert_line


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's flags."""
    parser.add_argument("model", metavar="MODEL", help="a name from `ls`")


def run(args: argparse.Namespace) -> int:
    """Delete the file and say how much came free."""
    from models.finding.remove import remove

    print(f"removed {inert_line(args.model)}: {remove(args.model) / 1e6:.1f} MB freed")
    return 0
