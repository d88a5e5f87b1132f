"""Delete a model that ember downloaded, or the chats that it keeps ready on disk."""

import argparse
from contextlib import suppress
from pathlib import Path

from app.inert import inert_line
from kvcache.errors import EmberError


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
    from models.finding.source import locate

    counted = _counted_of(locate(args.model))
    freed = remove(args.model)
    for each in counted:
        with suppress(OSError):  # what stays is small, and of no harm
            freed += each.stat().st_size
            each.unlink()
    print(f"removed {inert_line(args.model)}: {freed / 1e6:.1f} MB freed")
    return 0


def _counted_of(path: Path) -> list[Path]:
    """What was counted and measured of a model's file, which is of no use without it."""
    from app import layer_losses
    from models import calibrate
    from models.gguf.identity import identity

    try:
        name = identity(path)
    except EmberError:  # a file that is no model any more has nothing to be told by
        return []
    folders = calibrate.folder(), layer_losses.folder()
    return [each for folder in folders for each in folder.glob(f"{name}*")]
