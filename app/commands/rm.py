"""Delete a model that ember downloaded, or the chats that it keeps ready on disk."""

import argparse

from app.inert import inert_line


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's flags."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("model", nargs="?", metavar="MODEL", help="a name from `ls`")
    which.add_argument(
        "--kept",
        action="store_true",
        help="the encoded chats on disk; what they say stays, and is read again",
    )


def run(args: argparse.Namespace) -> int:
    """Delete the file and say how much came free."""
    if args.kept:
        from app.wake.folder import PieceFolder, default_folder

        print(f"removed the kept chats: {PieceFolder(default_folder()).clear() / 1e6:.1f} MB freed")
        return 0
    from models.finding.remove import remove

    print(f"removed {inert_line(args.model)}: {remove(args.model) / 1e6:.1f} MB freed")
    return 0
