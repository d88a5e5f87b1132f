"""Which of a repository's files is meant: by its quantization, else the best that fits.

Knows names and sizes; asks no server. The rule without a quantization: the first of
`PREFERRED` that is there and fits, Q4_K_M before all.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from models.errors import FetchError
from models.finding.hub import HubFile, HubModel, cached, cached_files, file_size
from models.finding.progress import size_text

PREFERRED = (
    *("Q4_K_M", "Q4_K_XL", "Q4_K_L", "Q4_K_S", "Q4_K", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS"),
    *("Q5_K_M", "Q5_K_XL", "Q5_K_L", "Q5_K_S", "Q5_K", "Q5_1", "Q5_0", "Q6_K_XL", "Q6_K_L", "Q6_K"),
    *("Q8_0", "Q8_K_XL", "Q3_K_XL", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q3_K", "IQ3_M", "IQ3_S"),
    *("IQ3_XS", "IQ3_XXS", "Q2_K_XL", "Q2_K_L", "Q2_K", "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS"),
    *("IQ2_XXS", "IQ1_M", "IQ1_S", "BF16", "F16", "F32"),
)
"""What is taken where nobody says what: four bits, then more, then fewer."""

_RANKS = {name: at for at, name in enumerate(PREFERRED)}
# The last one in a name counts: `model-f16-Q8_0` is Q8_0.
_QUANTIZATION = re.compile(
    r"(?<![a-z0-9])((?:ud-)?(?:i?q\d[a-z0-9_]*|tq\d_\d|mxfp4(?:_moe)?|bf16|fp?16|fp?32))(?![a-z0-9])",
    re.IGNORECASE,
)
_PART = re.compile(r"-(\d{5})-of-(\d{5})$")
# Of vision, or of how quantizations are made: nothing that is run by itself.
_BESIDE = ("mmproj", "imatrix")
_MOST_NAMED = 4


@dataclass(frozen=True, kw_only=True)
class ListedFile:
    """A model's file in a repository; of one that is split, the first part.

    size: bytes, all parts together. sha256: None where the Hub states none. parts: 1 for a whole
    file, which ember runs.
    """

    hub: HubFile
    size: int
    sha256: str | None = None
    parts: int = 1

    @property
    def quantization(self) -> str:
        """As the name says: `Q4_K_M`; empty where it does not."""
        found = _QUANTIZATION.findall(_stem(self.hub))
        name = found[-1].upper() if found else ""
        return name.replace("FP", "F", 1) if name in ("FP16", "FP32") else name

    @property
    def model(self) -> str:
        """The name without its quantization: the same for all files of one model."""
        found = list(_QUANTIZATION.finditer(_stem(self.hub)))
        stem = _stem(self.hub)
        bare = stem[: found[-1].start()] + stem[found[-1].end() :] if found else stem
        return bare.strip("-._").casefold()


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The file that was chosen of a repository. because: that, in a line for the user."""

    file: ListedFile
    because: str


def models_among(files: Iterable[ListedFile]) -> list[ListedFile]:
    """Those that are models, a split one once, the best first."""
    whole: dict[str, ListedFile] = {}
    for each in files:
        lowered = each.hub.file_name.casefold()
        if not lowered.endswith(".gguf") or any(word in lowered for word in _BESIDE):
            continue
        part = _PART.search(PurePosixPath(each.hub.file).stem)
        key = each.hub.file if part is None else each.hub.file[: -len(part[0]) - len(".gguf")]
        first, parts = whole.get(key), 1 if part is None else int(part[2])
        size = each.size + (first.size if first else 0)
        named = first.hub if first and first.hub.file < each.hub.file else each.hub
        whole[key] = ListedFile(hub=named, size=size, sha256=each.sha256, parts=parts)
    return sorted(whole.values(), key=lambda each: (_rank(each), each.size, each.hub.file))


def choose(wanted: HubModel, files: Sequence[ListedFile], room: int | None) -> Choice:
    """The file of `models_among` that is meant.

    room: bytes that its weights may take, None for any number. Raises FetchError, which says
    what there is.
    """
    if not files:
        raise FetchError(
            f"{wanted}: has no GGUF file of a model; `ember search "
            f"{wanted.repo.rpartition('/')[2]}` looks for one made of it"
        )
    if wanted.quantization:
        return _of_quantization(wanted, files)
    _check_one_model(wanted, files)
    whole = [each for each in files if each.parts == 1]
    if not whole:
        raise FetchError(_split(wanted, files[0], files))
    fitting = [each for each in whole if room is None or each.size <= room]
    if not fitting:
        least = min(whole, key=lambda each: each.size)
        raise FetchError(
            f"{wanted}: none of its files fits in memory here: the smallest, {least.hub.file}, has "
            f"{size_text(least.size)}; `ember pull {least.hub}` fetches it all the same"
        )
    return Choice(file=fitting[0], because=_because(wanted, fitting[0], whole))


def cached_choice(wanted: HubModel) -> Path | None:
    """What is meant, of the files that the cache has; None where that is none, or not clear."""
    here = {each: file_size(path) for each in cached_files(wanted) if (path := cached(each))}
    files = models_among(ListedFile(hub=hub, size=size) for hub, size in here.items() if size)
    try:
        return cached(choose(wanted, files, None).file.hub)
    except FetchError:
        return None


def _stem(hub: HubFile) -> str:
    return _PART.sub("", PurePosixPath(hub.file).stem)


def _bare(quantization: str) -> str:
    """In one case, and without the mark of those that vary by layer."""
    return quantization.upper().removeprefix("UD-")


def _rank(file: ListedFile) -> int:
    return _RANKS.get(_bare(file.quantization), len(PREFERRED))


def _check_one_model(wanted: HubModel, files: Sequence[ListedFile]) -> None:
    models = {each.model: each for each in reversed(files)}
    if len(models) > 1:
        named = [str(each.hub) for each in models.values()][::-1]
        raise FetchError(f"{wanted}: holds {len(models)} models: name a file, {_some(named)}")


def _of_quantization(wanted: HubModel, files: Sequence[ListedFile]) -> Choice:
    wish = wanted.quantization.upper()
    exact = [each for each in files if each.quantization == wish]
    found = exact or [each for each in files if _bare(each.quantization) == _bare(wish)]
    if not found:
        raise FetchError(f"{wanted}: has no {wish}; it has {_quantizations(files)}")
    whole = [each for each in found if each.parts == 1]
    if not whole:
        raise FetchError(_split(wanted, found[0], files))
    if len(whole) > 1:
        named = [str(each.hub) for each in whole]
        raise FetchError(f"{wanted}: {len(whole)} files are {wish}: name one, {_some(named)}")
    file = whole[0]
    return Choice(file=file, because=f"{wanted} is {file.hub.file}, {size_text(file.size)}")


def _split(wanted: HubModel, file: ListedFile, files: Sequence[ListedFile]) -> str:
    whole = [each for each in files if each.parts == 1]
    others = f"; in one file it has {_quantizations(whole)}" if whole else ""
    return (
        f"{wanted}: {file.quantization or file.hub.file_name} is in {file.parts} parts, and ember "
        f"runs whole files: fetch them with `hf download {wanted.repo}`, join them with "
        f"`llama-gguf-split --merge FIRST-PART OUT.gguf`, and name OUT.gguf{others}"
    )


def _because(wanted: HubModel, file: ListedFile, whole: Sequence[ListedFile]) -> str:
    best = whole[0]
    if len(whole) == 1:
        return f"{wanted} is {file.hub.file}, {size_text(file.size)}"
    reason = ""
    if file is not best:
        reason = f", as {best.quantization or best.hub.file} does not fit in memory here"
    elif _bare(file.quantization) != PREFERRED[0]:
        reason = f", as it has no {PREFERRED[0]}"
    taken = f"{file.hub.file} of {len(whole)} files is taken"
    return (
        f"{wanted}: {taken}{reason}, {size_text(file.size)}; "
        f"hf:{wanted.repo}:QUANTIZATION takes another"
    )


def _quantizations(files: Iterable[ListedFile]) -> str:
    return ", ".join(dict.fromkeys(each.quantization or each.hub.file_name for each in files))


def _some(names: Sequence[str]) -> str:
    more = f" or one of {len(names) - _MOST_NAMED} others" if len(names) > _MOST_NAMED else ""
    return " or ".join(names[:_MOST_NAMED]) + more
