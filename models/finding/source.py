"""From what a user types to a file on this machine. Never downloads.

A spec is read in this order:

    hf:OWNER/REPO/FILE.gguf[@REVISION]      a file on the Hub
    hf:OWNER/REPO[:QUANTIZATION][@REVISION] one of a repository's files there
    ember:…  lmstudio:…  ollama:…           a name that `models.finding.discover` gives
    anything with a slash, or *.gguf        a path (`~` is the home folder)
    anything else                           a catalogue name
"""

import difflib
from dataclasses import dataclass
from pathlib import Path

from kvcache.errors import quoted, reason, short
from models.errors import ModelNotFoundError
from models.finding import catalogue
from models.finding.choice import cached_choice
from models.finding.discover import FoundModel, discover, without_files
from models.finding.entry import CatalogueEntry
from models.finding.hub import MAIN, HubFile, HubModel, cached, file_size
from models.finding.store import installed, own_path

_HUB_PREFIX = "hf:"
_FOUND_PREFIXES = ("ember:", "lmstudio:", "ollama:")
# How many letters tell a family, and how many names are offered for one that is unknown.
_LEAST_PART, _MOST_OFFERED = 3, 3


@dataclass(frozen=True, kw_only=True)
class FoundName:
    """A name that only discovery can turn into a file."""

    name: str


Source = Path | CatalogueEntry | HubFile | HubModel | FoundName


def parse(spec: str) -> Source:
    """Read a model spec. Raises ModelNotFoundError for one that can name nothing."""
    if spec.startswith(_HUB_PREFIX):
        return _parse_hub(spec)
    if spec.startswith(_FOUND_PREFIXES):
        return FoundName(name=spec)
    if "/" in spec or spec.casefold().endswith(".gguf"):
        return _parse_path(spec)
    if known := catalogue.entry(spec):
        return known
    raise _unknown(spec)


def locate(spec: str) -> Path:
    """The file that `spec` names on this machine.

    Raises ModelNotFoundError, with close matches and what to do.
    """
    match parse(spec):
        case Path() as path:
            return _existing(path)
        case CatalogueEntry() as entry:
            if found := installed(entry):
                return found
            if (size := file_size(own := own_path(entry))) is not None:
                raise ModelNotFoundError(
                    f"{own} has {size} bytes, expected {entry.size}: it was cut short or changed; "
                    f"`ember pull {entry.name}` fetches it anew"
                )
            raise ModelNotFoundError(
                f"{entry.name} is not on this machine: `ember pull {entry.name}` "
                f"fetches it ({entry.size_text})"
            )
        case (HubFile() | HubModel()) as wanted:
            found = cached(wanted) if isinstance(wanted, HubFile) else cached_choice(wanted)
            if found:
                return found
            raise ModelNotFoundError(
                f"{wanted} is not on this machine: `ember pull {wanted}` fetches it"
            )
        case FoundName(name=name):
            return _found(name).path


def can_be_fetched(spec: str) -> bool:
    """Whether `models.finding.fetch` knows where to get the model from, should it not be here."""
    try:
        return isinstance(parse(spec), CatalogueEntry | HubFile | HubModel)
    except ModelNotFoundError:
        return False


def _parse_hub(spec: str) -> HubFile | HubModel:
    path, _, revision = spec.removeprefix(_HUB_PREFIX).partition("@")
    owner, _, rest = path.partition("/")
    repo, slash, file = rest.partition("/")
    repo, _, quantization = (repo, "", "") if slash else repo.partition(":")
    revision = revision or MAIN
    try:
        if spec.endswith(("@", ":")) or (slash and not file.casefold().endswith(".gguf")):
            raise ValueError(spec)
        if slash:
            return HubFile(repo=f"{owner}/{repo}", file=file, revision=revision)
        return HubModel(repo=f"{owner}/{repo}", quantization=quantization, revision=revision)
    except ValueError as error:
        raise ModelNotFoundError(
            f"{quoted(spec, 80)} names no model on the Hub: expected hf:OWNER/REPO, "
            "hf:OWNER/REPO:QUANTIZATION or hf:OWNER/REPO/FILE.gguf, and @REVISION behind it"
        ) from error


def _parse_path(spec: str) -> Path:
    try:
        return Path(spec).expanduser()
    except RuntimeError as error:
        raise ModelNotFoundError(f"{spec!r}: no such user; write the path in full") from error


def _existing(path: Path) -> Path:
    """`path`, if it is a file."""
    try:
        if path.is_file():
            return path
        is_folder, link = path.is_dir(), path.readlink() if path.is_symlink() else None
    except (OSError, ValueError) as error:
        raise ModelNotFoundError(
            f"{quoted(str(path), 80)}: cannot be read ({reason(error)})"
        ) from error
    if is_folder:
        inside = ", ".join(sorted(each.name for each in path.glob("*.gguf"))[:3])
        hint = f"name one of its files, such as {inside}" if inside else "it holds no .gguf file"
        raise ModelNotFoundError(f"{path} is a folder, expected a .gguf file: {hint}")
    if link is not None and not path.exists():
        raise ModelNotFoundError(
            f"{path} is a link to {link}, where there is no file: was it moved, or its disk not "
            "mounted?"
        )
    if path.exists():
        raise ModelNotFoundError(f"{path} is a device or a pipe, expected a .gguf file")
    raise ModelNotFoundError(f"{path}: no such file{_path_hint(path)}")


def _path_hint(path: Path) -> str:
    """What may have been meant by a path that leads nowhere."""
    try:
        neighbours = [each.name for each in path.parent.iterdir()]
    except (OSError, ValueError):
        neighbours = []
    if close := difflib.get_close_matches(path.name, neighbours, n=1):
        return f"; did you mean {path.parent / close[0]}?"
    if not path.is_absolute() and 2 <= len(path.parts) <= 3:
        return "; a model on the Hub is written hf:OWNER/REPO or hf:OWNER/REPO/FILE.gguf"
    return ""


def _found(name: str) -> FoundModel:
    """The discovered model of that name; Ollama's `latest` may be left out."""
    models = {model.name: model for model in discover()}
    for candidate in (name, f"{name}:latest"):
        if model := models.get(candidate):
            return model
        if blob := without_files().get(candidate):
            raise ModelNotFoundError(f"{candidate} {no_file(candidate, blob)}")
    raise _unknown(name, list(models))


def no_file(name: str, blob: Path) -> str:
    """What is wrong with a model of Ollama's that has no weights."""
    return (
        f"has a manifest, but its weights {blob} are missing or may not be read; "
        f"`ollama pull {name.removeprefix('ollama:')}` fetches them"
    )


def _unknown(name: str, found: list[str] | None = None) -> ModelNotFoundError:
    """An error that names what is close among the catalogue and the models found."""
    if not name.strip():
        return ModelNotFoundError("no model named: expected a name, a path or hf:OWNER/REPO")
    here = found if found is not None else [model.name for model in discover()]
    close = _close(name, here)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return ModelNotFoundError(
        f"no model named {quoted(name, 80)}: {hint}`ember ls` lists what can be used; "
        f"a file in this folder is written ./{short(Path(name).name, 80)}"
    )


def _close(name: str, found: list[str]) -> list[str]:
    """Some three models that a name may mean: it is a part of theirs, or is like one.

    The catalogue's have a title too: `deepseek-r1:8b` is r1-llama-8b, or one beside it.
    """
    bare = catalogue.bare
    entries = () if name.startswith(_FOUND_PREFIXES) else catalogue.CATALOGUE
    titles = {each.name: bare(each.title) for each in entries}
    known = {bare(each): each for each in (*titles, *found)}
    close: list[str] = []
    for part in (bare(name), bare(name.rpartition(":")[0])):
        if not close and len(part) >= _LEAST_PART:
            close = [each for each in known if part in each or part in titles.get(known[each], "")]
    like = difflib.get_close_matches(bare(name), known, n=_MOST_OFFERED)
    return [known[each] for each in dict.fromkeys([*sorted(close, key=len), *like])][:_MOST_OFFERED]
