"""What the Hugging Face Hub has: a search, a repository's files, and a file's first bytes.

Asks only when it is called, for what a user types; sends no more than that, and the user's
token where there is one. What the server names is looked at before it is passed on.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from kvcache.errors import quoted
from models.errors import FetchError
from models.finding.choice import ListedFile, models_among
from models.finding.hub import HubFile, HubModel
from models.finding.hub_asking import ask
from models.finding.hub_errors import explained
from models.finding.progress import ProgressCallback, silent
from models.finding.receive import opened

_LIMIT = 20
_SHA256 = re.compile("[0-9a-f]{64}")
_MOST_BYTES = 1 << 50
_LABEL = "asking the Hub"


@dataclass(frozen=True, kw_only=True)
class FoundRepo:
    """A repository of GGUF files.

    downloads: of the last month. parameters, architecture: of the model, None and empty where
    the Hub does not say.
    """

    repo: str
    downloads: int
    parameters: int | None = None
    architecture: str = ""
    gated: bool = False

    @property
    def parameters_text(self) -> str:
        """The parameters as people say them: 135M, 8.0B; empty where nobody has told."""
        if self.parameters is None:
            return ""
        count = self.parameters
        return f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.0f}M"


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """The first bytes of a file, and how many it has."""

    data: bytes
    size: int


def search(words: str, report: ProgressCallback = silent) -> list[FoundRepo]:
    """Repositories of GGUF files whose names hold the words, most downloaded first.

    An exception from `report`, which is called all the time, ends it. Raises FetchError.
    """
    return ask(quoted(words, 40), lambda _tell: _search(words), report, label=_LABEL)


def listing(wanted: HubModel, report: ProgressCallback = silent) -> list[ListedFile]:
    """The models' files in a repository, the best first. Raises FetchError."""
    return ask(str(wanted), lambda _tell: _list(wanted), report, label=_LABEL)


def beginning(wanted: HubFile, most: int, report: ProgressCallback = silent) -> Beginning:
    """A file's first bytes, `most` of them, without the others. Raises FetchError."""
    return ask(str(wanted), lambda _tell: _begin(wanted, most), report, label=_LABEL)


def _search(words: str) -> list[FoundRepo]:
    from huggingface_hub import HfApi, constants

    api = HfApi(endpoint=constants.ENDPOINT, library_name="ember")
    with explained(quoted(words, 40)):
        models = api.list_models(
            search=words,
            filter="gguf",
            sort="downloads",
            limit=_LIMIT,
            expand=["downloads", "gguf", "gated"],
        )
        return list(_found(models))


def _found(models: Any) -> Iterator[FoundRepo]:
    for each in models:
        with suppress(ValueError):  # a name that no spec can have
            repo = HubModel(repo=each.id).repo
            told = each.gguf if isinstance(each.gguf, dict) else {}
            count, architecture = told.get("total"), told.get("architecture")
            yield FoundRepo(
                repo=repo,
                downloads=each.downloads if isinstance(each.downloads, int) else 0,
                parameters=count if isinstance(count, int) and count > 0 else None,
                architecture=architecture if isinstance(architecture, str) else "",
                gated=bool(each.gated),
            )


def _list(wanted: HubModel) -> list[ListedFile]:
    from huggingface_hub import HfApi, constants

    api = HfApi(endpoint=constants.ENDPOINT, library_name="ember")
    with explained(wanted):
        told = api.model_info(
            wanted.repo,
            revision=wanted.revision,
            files_metadata=True,
            timeout=constants.HF_HUB_ETAG_TIMEOUT,
        )
        return models_among(_listed(wanted, told.siblings or []))


def _listed(wanted: HubModel, siblings: Any) -> Iterator[ListedFile]:
    for each in siblings:
        with suppress(ValueError):  # a name that no spec can have
            hub = HubFile(repo=wanted.repo, file=each.rfilename, revision=wanted.revision)
            sha256 = each.lfs.sha256 if each.lfs else None
            if not isinstance(each.size, int) or not 0 < each.size < _MOST_BYTES:
                continue
            stated = sha256 if isinstance(sha256, str) and _SHA256.fullmatch(sha256) else None
            yield ListedFile(hub=hub, size=each.size, sha256=stated)


def _begin(wanted: HubFile, most: int) -> Beginning:
    part = f"bytes=0-{most - 1}"
    with explained(wanted), opened(wanted, wanted.revision, part) as response:
        data = bytearray()
        for chunk in response.iter_bytes():
            data += chunk
            if len(data) >= most:  # of a server that sends the whole file, no more is taken
                break
        return Beginning(data=bytes(data[:most]), size=_whole_size(wanted, response.headers))


def _whole_size(wanted: HubFile, headers: Any) -> int:
    """Bytes of the whole file, of which a part has come."""
    told = headers.get("Content-Range", "").rpartition("/")[2] or headers.get("Content-Length", "")
    if not (told.isascii() and told.isdigit() and 0 < len(told) <= 16):
        raise FetchError(f"{wanted}: the server states {quoted(told)} bytes")
    return int(told)
