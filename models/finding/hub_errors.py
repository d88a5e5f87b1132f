"""What the Hub and the network refuse, in one line each, with what to do about it."""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager

from models.errors import FetchError
from models.finding.hub import HubFile, HubModel

UNREACHABLE = "the Hub cannot be reached ({}): check the network connection"
_NOT_FOUND = 404
_MOST_OFFERED, _ALIKE = 3, 0.75
_TOKEN = "set HF_TOKEN to a token of your account, or log in with `hf auth login`"


@contextmanager
def explained(wanted: HubFile | HubModel | str, broken: str = UNREACHABLE) -> Iterator[None]:
    """Turn what huggingface_hub raises into a FetchError that says what to do.

    wanted: what was asked for. broken: how a failure of the network is told.
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.HFValidationError as error:
        raise FetchError(f"{wanted}: not a repository name ({first_line(error)})") from error
    except errors.OfflineModeIsEnabled as error:
        raise FetchError(
            f"{wanted}: not on this machine, and HF_HUB_OFFLINE forbids asking the Hub: unset it"
        ) from error
    except errors.HfHubHTTPError as error:
        raise FetchError(f"{wanted}: {_refusal(error, wanted)}") from error
    except errors.HTTPError as error:  # type: ignore[attr-defined]  # base of every HTTP failure
        raise FetchError(f"{wanted}: {broken.format(first_line(error))}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        # What an answer that cannot be true ends in.
        raise FetchError(
            f"{wanted}: the Hub's answer makes no sense ({first_line(error)})"
        ) from error


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _refusal(error: Exception, wanted: HubFile | HubModel | str) -> str:
    """Explain a refusal of the Hub; the narrower classes come first."""
    from huggingface_hub import errors

    assert isinstance(error, errors.HfHubHTTPError)
    status = error.response.status_code
    if isinstance(error, errors.GatedRepoError):
        return f"it is gated: accept its terms on its Hub page, then {_TOKEN}"
    if status in (401, 403) and not isinstance(error, errors.RepositoryNotFoundError):
        return f"the Hub refuses access ({status}): {_TOKEN}"
    if isinstance(wanted, str):
        return f"the Hub answered {status}; try again later"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{wanted.repo} has no revision {wanted.revision!r}: leave out what follows the @"
    if isinstance(error, errors.EntryNotFoundError) and isinstance(wanted, HubFile):
        return (
            f"{wanted.repo} has no file {wanted.file}: names there are case-sensitive; "
            f"`ember search {wanted.repo}` lists them"
        )
    if isinstance(error, errors.RepositoryNotFoundError) or status == _NOT_FOUND:
        close = " or ".join(_like(wanted.repo))
        meant = f"did you mean {close}? Else " if close else ""
        return (
            f"the Hub has no repository {wanted.repo}, or it is private: {meant}"
            f"check the spelling, or {_TOKEN}"
        )
    return f"the Hub answered {status}; try again later"


def _like(repo: str) -> list[str]:
    """Some repositories whose names are like one that is not there; none where nobody answers."""
    from huggingface_hub import HfApi, constants, errors

    name = repo.rpartition("/")[2]
    # The Hub looks for a name's part: the first words of a misspelled one are likely right.
    stems = dict.fromkeys((name, "-".join(name.split("-")[:2]), repo.partition("/")[0]))
    found: list[str] = []
    api = HfApi(endpoint=constants.ENDPOINT)
    try:
        for stem in stems:
            models = api.list_models(search=stem, filter="gguf", sort="downloads", limit=20)
            found += [each.id for each in models]
    except (errors.HTTPError, OSError, ValueError, TypeError):  # type: ignore[attr-defined]
        return []
    return difflib.get_close_matches(repo, dict.fromkeys(found), n=_MOST_OFFERED, cutoff=_ALIKE)
