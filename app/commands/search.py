"""Look for models on the Hugging Face Hub, and for what fits this machine."""

import argparse
from typing import TYPE_CHECKING, Any

from app.inert import inert_line
from app.streams import print_json

if TYPE_CHECKING:
    from app.model_list import Cost, Outlook
    from models.finding.choice import ListedFile
    from models.finding.hub import HubModel
    from models.finding.hub_listing import FoundRepo

_Row = tuple["ListedFile", "Cost", "Outlook"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's flags."""
    parser.add_argument(
        "words",
        metavar="WORDS",
        nargs="+",
        help="words of a model's name; or owner/repo, to see its files, what fits of them and "
        "what their cache takes. They are sent to the Hub",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print repositories, or the files of one."""
    words = " ".join(args.words)
    model = _named(words)
    if model is None:
        _print_repos(words, as_json=args.json)
    else:
        _print_files(model, as_json=args.json)
    return 0


def _named(words: str) -> "HubModel | None":
    """The repository that is named instead of looked for."""
    from models.errors import ModelNotFoundError
    from models.finding.hub import HubModel
    from models.finding.source import parse

    if " " in words or words.count("/") != 1:
        return None
    try:
        found = parse(words if words.startswith("hf:") else f"hf:{words}")
    except ModelNotFoundError:
        return None
    return found if isinstance(found, HubModel) else None


def _print_repos(words: str, *, as_json: bool) -> None:
    from app.console import note
    from app.hub_models import runs
    from app.progress import busy_bar
    from kvcache.errors import quoted
    from models.finding.hub_listing import search

    with busy_bar("asking the Hub"):
        found = search(words)
    if as_json:
        print_json({"repositories": [_repo_json(each) for each in found]})
        return
    if not found:
        note(f"the Hub has no GGUF repository whose name holds {quoted(words, 80)}")
        return
    for each in found:
        about = each.architecture if runs(each.architecture) else _cannot_run(each.architecture)
        gated = " (gated: needs HF_TOKEN)" if each.gated else ""
        text = inert_line(f"{about}{gated}")
        figures = f"{each.downloads:>12,} downloads  {each.parameters_text:>7}"
        print(f"  {inert_line(each.repo):<56} {figures}  {text}")
    note("`ember search OWNER/REPO` shows its files, `ember pull hf:OWNER/REPO` takes one")


def _print_files(model: "HubModel", *, as_json: bool) -> None:
    from app.console import note

    rows = _rows(model)
    taken = _taken(model, [row[0] for row in rows])
    if as_json:
        print_json({"repository": model.repo, "files": [_file_json(row, taken) for row in rows]})
        return
    for row in sorted(rows, key=lambda each: each[0].size):
        _print_file(row, is_taken=row[0] is taken)
    if taken is not None:
        note(f"* is what `ember pull {model}` takes")


def _rows(model: "HubModel") -> list[_Row]:
    """The files of a repository, the best first, and what is known of each."""
    from app.hub_models import costs_of
    from app.memory import memory
    from app.model_list import outlook
    from app.progress import busy_bar
    from models.finding.hub_listing import listing

    with busy_bar("asking the Hub"):
        files = listing(model)
        costs = costs_of(files)
    here = memory()
    return [(file, cost, outlook(cost, here)) for file, cost in zip(files, costs, strict=True)]


def _taken(model: "HubModel", files: list["ListedFile"]) -> "ListedFile | None":
    """What `pull` would download; None, and why, where it would refuse."""
    from app.console import note
    from app.hub_models import weights_room
    from models.errors import FetchError
    from models.finding.choice import choose

    try:
        return choose(model, files, weights_room()).file
    except FetchError as error:
        note(str(error))
        return None


def _print_file(row: _Row, *, is_taken: bool) -> None:
    from app.units import file_size, size

    file, cost, seen = row
    text = f"cannot run: {cost.problem}" if cost.problem else seen.in_words
    if cost.token_bytes:
        hot, cold = (size(1000 * each) for each in (cost.token_bytes, cost.cold_bytes))
        text = f"{text}; cache per 1k tokens {hot}, {cold} as ember keeps them"
    mark, name = "*" if is_taken else " ", inert_line(file.hub.file)
    print(f"{mark} {name:<52} {file_size(file.size):>9}  {inert_line(text)}")


def _cannot_run(architecture: str) -> str:
    return f"cannot run: architecture {architecture}"


def _repo_json(each: "FoundRepo") -> dict[str, Any]:
    from app.hub_models import runs

    return {
        "name": f"hf:{each.repo}",
        "downloads": each.downloads,
        "parameters": each.parameters,
        "architecture": each.architecture or None,
        "gated": each.gated,
        "runs": runs(each.architecture) if each.architecture else None,
    }


def _file_json(row: _Row, taken: "ListedFile | None") -> dict[str, Any]:
    file, cost, seen = row
    return {
        "name": str(file.hub),
        "bytes": file.size,
        "quantization": file.quantization or None,
        "sha256": file.sha256,
        "parts": file.parts,
        "taken": file is taken,
        "memory": seen.room.value,
        "window": seen.window,
        "token_bytes_f16": cost.token_bytes,
        "token_bytes_cold": cost.cold_bytes,
        "window_layers_bytes": cost.window_bytes,
        **({"problem": cost.problem} if cost.problem else {}),
    }
