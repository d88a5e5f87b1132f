"""Delete a model file, if it is ember's own.

Files in other programs' folders stay, also those that ember fetched through
the Hub: the Hugging Face cache is shared, and its blobs may serve others.
"""

from pathlib import Path

from kvcache.errors import EmberError, reason
from models.finding.discover import FoundModel, Origin, discover
from models.finding.source import locate
from models.finding.store import models_folder


def remove(spec: str) -> int:
    """Delete the file that `spec` names from ember's folder; return the bytes freed.

    Raises ModelNotFoundError where nothing answers to `spec`, and EmberError
    where the file is not ember's, with its owner and how to delete it there.
    """
    path = locate(spec)
    if not _is_ours(path):
        raise EmberError(_refusal(path))
    try:
        size = path.lstat().st_size
        path.unlink()
    except OSError as error:
        raise EmberError(f"{path}: cannot be removed ({reason(error)})") from error
    return size


def _is_ours(path: Path) -> bool:
    # The folder part alone is resolved: a link that lies in ember's folder is ember's.
    return path.parent.resolve().is_relative_to(models_folder().resolve())


def _refusal(path: Path) -> str:
    real = path.resolve()
    owner = next((model for model in discover() if model.path.resolve() == real), None)
    if owner is None:
        return f"{path} is not ember's to remove: it only removes what is in {models_folder()}"
    return f"{owner.name} stays: {path} {_owner_hint(owner)}"


def _owner_hint(model: FoundModel) -> str:
    match model.origin:
        case Origin.HUGGING_FACE:
            repo, file = _hub_parts(model.path)
            return (
                "is in the Hugging Face cache, which other programs share; "
                f"`hf cache rm hf://models/{repo}/{file}` removes it for all"
            )
        case Origin.LM_STUDIO:
            return "belongs to LM Studio; delete it there"
        case Origin.OLLAMA if model.path.name.startswith(model.name.removeprefix("ollama:")):
            return "is left over in Ollama's folder, where no name leads to it; delete it by hand"
        case Origin.OLLAMA:
            return f"belongs to Ollama; `ollama rm {model.name.removeprefix('ollama:')}` removes it"
        case Origin.EMBER:
            return f"links to a file in ember's folder {models_folder()}; name that instead"


def _hub_parts(path: Path) -> tuple[str, str]:
    """Repository and file of a path in the Hugging Face cache."""
    parts = path.parts
    snapshots = len(parts) - 1 - parts[::-1].index("snapshots")
    repo = parts[snapshots - 1].removeprefix("models--").replace("--", "/", 1)
    return repo, "/".join(parts[snapshots + 2 :])
