"""Delete a model that ember downloaded."""

import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's flags."""
    parser.add_argument("model", metavar="MODEL", help="a name from `ls`")


def run(args: argparse.Namespace) -> int:
    """Delete the file and say how much came free."""
    from models.remove import remove

    print(f"removed {args.model}: {remove(args.model) / 1e6:.1f} MB freed")
    return 0
