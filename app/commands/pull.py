"""Download a model, or check the one that is here."""

import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's flags."""
    parser.add_argument("model", metavar="MODEL", help="a name from `ls`, or hf:owner/repo/file")


def run(args: argparse.Namespace) -> int:
    """Print the path of the file, downloaded, or already there and of the right hash."""
    from app.session import fetch_with_bar

    print(fetch_with_bar(args.model, check=True))
    return 0
