"""Parts of a file on the Hub, and how all that are missing are appended to those that are here.

Knows HTTP ranges, and servers and networks that keep to none; knows no cache and no hash.
"""

import re
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from models.errors import FetchError
from models.finding.hub import HubFile
from models.finding.hub_errors import explained, first_line
from models.finding.progress import Progress, ProgressCallback

# Tries that bring nothing, one after the other, and how long to wait after the first.
_TRIES = 5
_RETRY_SECONDS = 1.0
_TELL_SECONDS = 0.05
_PART, _TOO_FAR = 206, 416
_AGAIN = (408, 429, 500, 502, 503, 504)
_BROKEN = "the download broke off ({}); run it again, and it goes on there"


def receive(
    wanted: HubFile, commit: str, file: BinaryIO, size: int, tell: ProgressCallback
) -> None:
    """Bring a file that is at its end to `size` bytes; those of `wanted` at a commit.

    What breaks off is tried again, as long as something comes. Raises FetchError; what has
    come by then stays.
    """
    from huggingface_hub import constants

    if size > constants.MAX_HTTP_DOWNLOAD_SIZE:
        raise FetchError(
            f"{wanted}: has more than {constants.MAX_HTTP_DOWNLOAD_SIZE / 1e9:.0f} GB, which the "
            f"Hub gives to its own program alone: `hf download {wanted.repo} {wanted.file}`; "
            "ember then finds it"
        )
    fruitless = 0
    while (have := file.tell()) < size:
        problem = _try(wanted, commit, file, size, tell)
        file.flush()
        fruitless = 0 if file.tell() > have else fruitless + 1
        if fruitless >= _TRIES:
            raise FetchError(f"{wanted}: {_BROKEN.format(problem)}")
        if file.tell() < size:
            tell(Progress(done_bytes=file.tell(), total_bytes=size, label="trying again"))
            time.sleep(_RETRY_SECONDS)


@contextmanager
def opened(
    wanted: HubFile, revision: str, part: str, *, passes: Collection[int] = ()
) -> Iterator[Any]:
    """The answer for a part of a file, as HTTP says it, or for all of it where that is empty.

    Raises what huggingface_hub does for a refusal, unless its status is one of `passes`.
    """
    from huggingface_hub import constants, get_session, hf_hub_url
    from huggingface_hub.utils import (  # type: ignore[attr-defined]  # documented, not in __all__
        build_hf_headers,
        hf_raise_for_status,
    )

    url = hf_hub_url(wanted.repo, wanted.file, revision=revision)
    headers = build_hf_headers(library_name="ember") | {"Accept-Encoding": "identity"}
    if part:
        headers["Range"] = part
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
        if response.status_code not in passes:
            hf_raise_for_status(response)
        yield response


def _try(wanted: HubFile, commit: str, file: BinaryIO, size: int, tell: ProgressCallback) -> str:
    """One request for what is missing; returns why not all of it came."""
    from huggingface_hub import errors

    part = f"bytes={file.tell()}-" if file.tell() else ""
    with explained(wanted, _BROKEN):
        try:
            # Of the commit that was stated: what the branch holds may be another file by now.
            with opened(wanted, commit, part, passes=(_TOO_FAR, *_AGAIN)) as response:
                status = response.status_code
                if status >= 400:
                    if status == _TOO_FAR:
                        _begin_anew(file)
                    return f"the Hub answered {status}"
                if not _is_next(response, file):
                    return "the server sent another part of it"
                _append(wanted, response, file, size, tell)
        except errors.HfHubHTTPError:
            raise
        except errors.HTTPError as error:  # type: ignore[attr-defined]  # base of all failures
            return first_line(error)
    return "the server sent no more"


def _is_next(response: Any, file: BinaryIO) -> bool:
    """Whether what comes belongs at the file's end, which moves where a server sends all."""
    told = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    begins = int(told[1]) if told and response.status_code == _PART else 0
    if begins != file.tell():
        _begin_anew(file)
    return begins == file.tell()


def _begin_anew(file: BinaryIO) -> None:
    file.seek(0)
    file.truncate()


def _append(
    wanted: HubFile, response: Any, file: BinaryIO, size: int, tell: ProgressCallback
) -> None:
    told = 0.0
    for chunk in response.iter_bytes():
        if file.tell() + len(chunk) > size:
            raise FetchError(f"{wanted}: the server sends more than the {size} bytes it states")
        file.write(chunk)
        if time.monotonic() - told > _TELL_SECONDS:
            told = time.monotonic()
            file.flush()  # a kill then takes little
            tell(Progress(done_bytes=file.tell(), total_bytes=size, label=wanted.file_name))
    tell(Progress(done_bytes=file.tell(), total_bytes=size, label=wanted.file_name))
