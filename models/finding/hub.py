"""Names of files and models on the Hugging Face Hub, and its cache on this machine.

The cache belongs to all programs that use the Hub. Looking into it needs no
network and writes nothing; `hub_download` fills it. Layout (huggingface_hub,
"Understand caching"):

    HUB/models--OWNER--REPO/refs/REVISION            the commit it stands for
    HUB/models--OWNER--REPO/snapshots/COMMIT/FILE -> ../../blobs/SHA256
"""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

MAIN = "main"

COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_QUANTIZATION = re.compile(r"[\w.-]{1,40}", re.ASCII)
# What file systems allow for one part of a path.
_MAX_NAME_BYTES = 255


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """One file of one model repository, at one revision (a branch, tag or commit)."""

    repo: str
    file: str
    revision: str = MAIN

    def __post_init__(self) -> None:
        parts = f"{self.repo}/{self.file}/{self.revision}".split("/")
        if self.repo.count("/") != 1 or not all(map(_is_name, parts)):
            raise ValueError(f"{self}: expected hf:OWNER/REPO/FILE")

    def __str__(self) -> str:
        """The spec that a user types; `models.finding.source.parse` reads it back."""
        suffix = "" if self.revision == MAIN else f"@{self.revision}"
        return f"hf:{self.repo}/{self.file}{suffix}"

    @property
    def file_name(self) -> str:
        """The last part of the file's path."""
        return PurePosixPath(self.file).name


@dataclass(frozen=True, kw_only=True)
class HubModel:
    """A model repository, of which one file is meant, at one revision.

    quantization: which file, as in `Q4_K_M`, in any case; empty for the best that fits.
    """

    repo: str
    quantization: str = ""
    revision: str = MAIN

    def __post_init__(self) -> None:
        parts = f"{self.repo}/{self.revision}".split("/")
        named = not self.quantization or _QUANTIZATION.fullmatch(self.quantization)
        if self.repo.count("/") != 1 or not all(map(_is_name, parts)) or not named:
            raise ValueError(f"{self}: expected hf:OWNER/REPO or hf:OWNER/REPO:QUANTIZATION")

    def __str__(self) -> str:
        """The spec that a user types; `models.finding.source.parse` reads it back."""
        wish = f":{self.quantization}" if self.quantization else ""
        suffix = "" if self.revision == MAIN else f"@{self.revision}"
        return f"hf:{self.repo}{wish}{suffix}"


def _is_name(part: str) -> bool:
    """Whether a part of a path is one everywhere, and leads nowhere else."""
    plain = part not in ("", ".", "..") and part.isprintable() and "\\" not in part
    return plain and len(part.encode()) <= _MAX_NAME_BYTES


def hub_folder() -> Path:
    """The Hugging Face cache, by the same environment variables as huggingface_hub."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if folder := os.environ.get(variable):
            return _expanded(folder)
    if home := os.environ.get("HF_HOME"):
        return _expanded(home) / "hub"
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return _expanded(cache) / "huggingface" / "hub"


def repo_folder(repo: str) -> Path:
    """Where the cache keeps `OWNER/REPO`, present or not."""
    return hub_folder() / f"models--{repo.replace('/', '--')}"


def commit_of(folder: Path, revision: str) -> str | None:
    """The commit that a repository's cache folder knows `revision` by, or None.

    Nothing but a hash is taken, so that what the file says cannot lead out of the cache.
    """
    try:
        commit = (folder / "refs" / revision).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return commit if COMMIT.fullmatch(commit) else None


def cached(wanted: HubFile) -> Path | None:
    """The cached copy of `wanted` at its revision, or None."""
    folder = repo_folder(wanted.repo)
    commit = commit_of(folder, wanted.revision) or wanted.revision
    path = folder / "snapshots" / commit / wanted.file
    return path if file_size(path) is not None else None


def cached_files(wanted: HubModel) -> list[HubFile]:
    """The GGUF files that the cache has of a repository, at the wanted revision."""
    folder = repo_folder(wanted.repo)
    snapshot = folder / "snapshots" / (commit_of(folder, wanted.revision) or wanted.revision)
    found = []
    for path in sorted(snapshot.rglob("*")):
        if path.suffix.casefold() == ".gguf" and file_size(path) is not None:
            with suppress(ValueError):  # a name that no spec can have
                file = path.relative_to(snapshot).as_posix()
                found.append(HubFile(repo=wanted.repo, file=file, revision=wanted.revision))
    return found


def cached_revisions(wanted: HubFile) -> Iterator[Path]:
    """Every cached copy of `wanted`'s file, its own revision first."""
    if first := cached(wanted):
        yield first
    snapshots = repo_folder(wanted.repo) / "snapshots"
    try:
        commits = sorted(snapshots.iterdir())
    except OSError:
        return
    for commit in commits:
        path = commit / wanted.file
        if path != first and file_size(path) is not None:
            yield path


def file_size(path: Path) -> int | None:
    """Bytes of a regular file; None where there is none, or none that may be read."""
    try:
        return path.stat().st_size if path.is_file() and os.access(path, os.R_OK) else None
    except (OSError, ValueError):
        return None


def _expanded(folder: str) -> Path:
    return Path(os.path.expandvars(folder)).expanduser()
