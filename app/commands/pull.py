"""Download a model, or check the one that is here."""

import argparse
from typing import TYPE_CHECKING

from app import options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from models.finding.entry import CatalogueEntry

_EXAMPLES = """\
ember pull smollm2
ember pull hf:bartowski/SmolLM2-360M-Instruct-GGUF/SmolLM2-360M-Instruct-Q4_K_M.gguf
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's flags."""
    options.add_examples(parser, _EXAMPLES)
    parser.add_argument("model", metavar="MODEL", help="a name from `ls`, or hf:owner/repo/file")


def run(args: argparse.Namespace) -> int:
    """Print the path of the file, downloaded, or already there and of the right hash."""
    from app.console import note
    from app.session import fetch_with_bar
    from models.finding.entry import CatalogueEntry
    from models.finding.source import parse
    from models.finding.store import installed

    source = parse(args.model)
    if isinstance(source, CatalogueEntry) and installed(source) is None:
        for line in _foretold(source):
            note(line)
    print(fetch_with_bar(args.model, check=True))
    return 0


def _foretold(entry: "CatalogueEntry") -> "Iterator[str]":
    """What a user should know before the download: size, licence, what it takes in memory."""
    from app.memory import memory
    from app.model_list import Room, foretell, outlook
    from app.tui.text.units import size
    from kvcache import CacheConfig

    cost, here, kv = foretell(entry), memory(), CacheConfig()
    yield f"{entry.name}: {entry.size_text}, licence {entry.licence}. {entry.about}"
    beside = f"; {size(cost.window_bytes)} for layers with windows" if cost.window_bytes else ""
    yield (
        f"cache per 1k tokens: {size(1000 * cost.token_bytes)} in f16, "
        f"{size(1000 * cost.cold_bytes)} as ember keeps them ({kv.keys}/{kv.values}){beside}"
    )
    found, made_for = outlook(cost, here), entry.shape.context
    match found.room:
        case Room.UNKNOWN:
            yield "whether it fits in memory is seen once it is here: its size is not known"
        case Room.TOO_LARGE:
            yield f"it is too large for this machine, which has {here.most / 1e9:.1f} GB for it"
        case Room.SMALLER:
            yield f"it fits with a smaller window: {found.window:,} of {made_for:,} tokens"
        case _:
            yield f"it fits with its whole window of {found.window:,} tokens"
