"""Model files that are already on this machine, whoever fetched them.

Read-only and quiet: what is broken, unreadable or half there is left out. The
name of a found model is what a user may type back as a spec:

    smollm2                       a catalogue name, where its file is here
    ember:FILE.gguf               another file in ember's own folder
    hf:OWNER/REPO/FILE.gguf       Hugging Face cache (@COMMIT: not its `main`)
    lmstudio:OWNER/REPO/FILE.gguf LM Studio, the path below its model folder
    ollama:llama3.2:1b            Ollama, the name that `ollama ls` shows
    ollama:sha256-0123456789ab    Ollama, weights that none of its names leads to

Of several split shards only the first is listed; vision projectors are not.
"""

import enum
import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from models.finding import catalogue
from models.finding.hub import MAIN, HubFile, commit_of, file_size, hub_folder
from models.finding.store import installed, models_folder

_LM_STUDIO_FOLDERS = ("~/.lmstudio/models", "~/.cache/lm-studio/models")
_OLLAMA_FOLDER = "~/.ollama/models"
# Where Linux packages let Ollama run as a user of its own: its installer's, those of
# distributions, and the snap's.
_OLLAMA_SERVICE_FOLDERS = (
    "/usr/share/ollama/.ollama/models",
    "/var/lib/ollama/.ollama/models",
    "/var/lib/ollama/models",
    "/var/lib/ollama",
    "/var/snap/ollama/common/models",
)
# Ollama's own registry, which its names leave out, is the one host that starts so.
_OLLAMA_OWN_REGISTRY = "registry."
_OLLAMA_LIBRARY = "library"
_OLLAMA_MODEL_LAYER = "application/vnd.ollama.image.model"
_MANIFEST_LIMIT = 1 << 20
_SHORT_DIGEST = len("sha256-0123456789ab")
_MAX_DEPTH = 8

_SHARD = re.compile(r"-(\d{5})-of-\d{5}\.gguf$", re.IGNORECASE)
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")


class Origin(enum.Enum):
    """The program whose folder holds a file."""

    EMBER = "ember"
    HUGGING_FACE = "Hugging Face"
    LM_STUDIO = "LM Studio"
    OLLAMA = "Ollama"


@dataclass(frozen=True, kw_only=True)
class FoundModel:
    """A model file on this machine; size in bytes."""

    name: str
    path: Path
    size: int
    origin: Origin


def discover() -> list[FoundModel]:
    """Every model file found, ember's own first; names are unique."""
    unique: dict[str, FoundModel] = {}
    for scan in (_ember, _hugging_face, _lm_studio, _ollama):
        for model in scan():
            unique.setdefault(model.name, model)
    return list(unique.values())


def _ember() -> Iterator[FoundModel]:
    root = models_folder()
    names = _catalogue_names()
    for path, size in _gguf_files(root):
        name = names.get(path.resolve()) or f"ember:{_below(root, path)}"
        yield FoundModel(name=name, path=path, size=size, origin=Origin.EMBER)


def _hugging_face() -> Iterator[FoundModel]:
    names = _catalogue_names()
    for repo in _subfolders(hub_folder()):
        kind, *parts = repo.name.split("--", 2)
        if kind != "models" or len(parts) != 2:
            continue
        seen: set[Path] = set()
        for path, size, revision in _snapshot_files(repo):
            if (real := path.resolve()) in seen:
                continue
            seen.add(real)
            file = "/".join(path.relative_to(repo).parts[2:])
            with suppress(ValueError):  # a name that no spec can have
                spec = HubFile(repo="/".join(parts), file=file, revision=revision)
                name = names.get(real) or str(spec)
                yield FoundModel(name=name, path=path, size=size, origin=Origin.HUGGING_FACE)


def _snapshot_files(repo: Path) -> Iterator[tuple[Path, int, str]]:
    """Files (path, bytes, revision) of a cached repository, those of `main` first."""
    main = commit_of(repo, MAIN)
    snapshots = sorted(_subfolders(repo / "snapshots"), key=lambda each: each.name != main)
    for snapshot in snapshots:
        revision = MAIN if snapshot.name == main else snapshot.name
        for path, size in _gguf_files(snapshot):
            yield path, size, revision


def _lm_studio() -> Iterator[FoundModel]:
    for folder in _LM_STUDIO_FOLDERS:
        root = Path(folder).expanduser()
        for path, size in _gguf_files(root):
            name = f"lmstudio:{_below(root, path)}"
            yield FoundModel(name=name, path=path, size=size, origin=Origin.LM_STUDIO)


def _ollama() -> Iterator[FoundModel]:
    for root in _ollama_folders():
        named: set[Path] = set()
        for name, blob, others in _ollama_manifests(root):
            named.update(others)
            if name and blob and (size := file_size(blob)) is not None:
                yield FoundModel(name=name, path=blob, size=size, origin=Origin.OLLAMA)
        for blob in sorted(set(_blobs(root)) - named):
            if size := file_size(blob):
                name = f"ollama:{blob.name[:_SHORT_DIGEST]}"
                yield FoundModel(name=name, path=blob, size=size, origin=Origin.OLLAMA)


def without_files() -> dict[str, Path]:
    """Ollama's models whose weights are missing or may not be read, by name."""
    found: dict[str, Path] = {}
    for root in _ollama_folders():
        for name, blob, _ in _ollama_manifests(root):
            if name and blob and file_size(blob) is None:
                found.setdefault(name, blob)
    return found


def _ollama_folders() -> list[Path]:
    own = os.environ.get("OLLAMA_MODELS") or _OLLAMA_FOLDER
    return [Path(folder).expanduser() for folder in (own, *_OLLAMA_SERVICE_FOLDERS)]


def _ollama_manifests(root: Path) -> Iterator[tuple[str | None, Path | None, list[Path]]]:
    """Of each manifest: the model's name, the file of its weights, and all its files."""
    for path in _files(root / "manifests"):
        parts = path.relative_to(root / "manifests").parts
        name = f"ollama:{_ollama_name(*parts)}" if len(parts) == 4 else None
        layers = _ollama_layers(root, path)
        weights = next((file for kind, file in layers if kind == _OLLAMA_MODEL_LAYER), None)
        yield name, weights, [file for _, file in layers]


def _blobs(root: Path) -> Iterator[Path]:
    """Files of weights in Ollama's own naming, whoever they belong to."""
    with suppress(OSError):
        for path in (root / "blobs").iterdir():
            if _DIGEST.fullmatch(path.name) and _is_gguf(path):
                yield path


def _is_gguf(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


def _ollama_name(registry: str, namespace: str, model: str, tag: str) -> str:
    """The name as Ollama shows it: parts that are its defaults are left out."""
    parts = [registry, namespace, model]
    if registry.startswith(_OLLAMA_OWN_REGISTRY):
        parts = parts[2:] if namespace == _OLLAMA_LIBRARY else parts[1:]
    return f"{'/'.join(parts)}:{tag}"


def _ollama_layers(root: Path, manifest: Path) -> list[tuple[str, Path]]:
    """Kind and file of a manifest's layers; none for what is no manifest."""
    try:
        with manifest.open(encoding="utf-8") as file:
            layers = json.loads(file.read(_MANIFEST_LIMIT))["layers"]
        stated = [(layer["mediaType"], _DIGEST.fullmatch(layer["digest"])) for layer in layers]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    # The digest names a file: taken only in this form, it cannot lead out of the folder.
    return [(kind, root / "blobs" / f"sha256-{match[1]}") for kind, match in stated if match]


def _catalogue_names() -> dict[Path, str]:
    """The files that catalogue names stand for at present, links resolved."""
    paths = ((installed(entry), entry.name) for entry in catalogue.CATALOGUE)
    return {path.resolve(): name for path, name in paths if path is not None}


def _gguf_files(root: Path) -> Iterator[tuple[Path, int]]:
    """Model files below `root` with their sizes."""
    for path in _files(root):
        if _is_model_name(path.name) and (size := file_size(path)):
            yield path, size


def _is_model_name(name: str) -> bool:
    shard = _SHARD.search(name)
    if shard and int(shard[1]) != 1:
        return False
    lowered = name.casefold()
    return lowered.endswith(".gguf") and "mmproj" not in lowered


def _files(root: Path) -> Iterator[Path]:
    """Files below `root` in a stable order; links are followed, each folder visited once."""
    visited: set[tuple[int, int]] = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        here = Path(folder)
        try:
            status = here.stat()
        except OSError:
            subfolders.clear()
            continue
        deep = len(here.relative_to(root).parts) >= _MAX_DEPTH
        if deep or (status.st_dev, status.st_ino) in visited:
            subfolders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from (here / name for name in sorted(files) if not name.startswith("."))


def _subfolders(root: Path) -> list[Path]:
    try:
        return sorted(Path(each.path) for each in os.scandir(root) if each.is_dir())
    except OSError:
        return []


def _below(root: Path, path: Path) -> PurePosixPath:
    return PurePosixPath(path.relative_to(root))
