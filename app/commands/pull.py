"""Download a model, or check the one that is here."""

import argparse
from typing import TYPE_CHECKING

from app import options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.model_list import Cost
    from models.finding.hub import HubFile
    from models.finding.source import Source

_EXAMPLES = """\
ember pull smollm2
ember pull hf:bartowski/SmolLM2-360M-Instruct-GGUF/SmolLM2-360M-Instruct-Q4_K_M.gguf
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's flags."""
    options.add_examples(parser, _EXAMPLES)
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a name from `ls`, hf:owner/repo (the file of it that fits best), "
        "hf:owner/repo:Q4_K_M, or hf:owner/repo/file; @REVISION behind it",
    )


def run(args: argparse.Namespace) -> int:
    """Print the path of the file, downloaded, or already there and of the right hash."""
    from app.console import note
    from app.hub_models import weights_room
    from app.session import fetch_with_bar
    from models.finding.choice import cached_choice, choose
    from models.finding.hub import HubModel
    from models.finding.hub_listing import listing
    from models.finding.source import parse

    source, name = parse(args.model), args.model
    if isinstance(source, HubModel) and cached_choice(source) is None:
        choice = choose(source, listing(source), weights_room())
        note(choice.because)
        source, name = choice.file.hub, str(choice.file.hub)
    for line in _foretold(source):
        note(line)
    print(fetch_with_bar(name, check=True))
    return 0


def _foretold(source: "Source") -> "Iterator[str]":
    """What a user should know before the download; nothing of a model that is here."""
    from app.model_list import foretell
    from models.finding.entry import CatalogueEntry
    from models.finding.hub import HubFile, cached
    from models.finding.store import installed

    match source:
        case CatalogueEntry() as entry if installed(entry) is None:
            yield f"{entry.name}: {entry.size_text}, licence {entry.licence}. {entry.about}"
            yield from _memory(foretell(entry))
        case HubFile() as file if cached(file) is None:
            yield from _of_hub(file)
        case _:
            pass


def _of_hub(file: "HubFile") -> "Iterator[str]":
    """By the file's header. Raises EmberError for a model that cannot be run: it stays there."""
    from app.hub_models import examine
    from kvcache.errors import EmberError

    cost = examine(file, "")
    if cost.problem:
        raise EmberError(f"{file} cannot run: {cost.problem}; nothing was downloaded")
    yield from _memory(cost)


def _memory(cost: "Cost") -> "Iterator[str]":
    """What a model's cache takes, and whether it fits beside the weights."""
    from app.memory import memory
    from app.model_list import Room, outlook
    from app.units import size
    from kvcache import CacheConfig

    here, kv = memory(), CacheConfig()
    beside = f"; {size(cost.window_bytes)} for layers with windows" if cost.window_bytes else ""
    yield (
        f"cache per 1k tokens: {size(1000 * cost.token_bytes)} in f16, "
        f"{size(1000 * cost.cold_bytes)} as ember keeps them ({kv.keys}/{kv.values}){beside}"
    )
    found = outlook(cost, here)
    made_for = 0 if cost.shape is None else cost.shape.context
    match found.room:
        case Room.UNKNOWN:
            yield "whether it fits in memory is seen once it is here: its size is not known"
        case Room.TOO_LARGE:
            yield f"it is too large for this machine, which has {here.most / 1e9:.1f} GB for it"
        case Room.SMALLER:
            yield f"it fits with a smaller window: {found.window:,} of {made_for:,} tokens"
        case _:
            yield f"it fits with its whole window of {found.window:,} tokens"
