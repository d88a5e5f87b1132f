"""The models that can be chosen, and what each would cost in memory.

Looks at disks, so it is run beside the screen. Knows no widget.
"""

from collections import Counter
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from kvcache import Backend, CacheConfig, EmberError, resolve
from kvcache.plan import ModelShape
from models.catalogue import CATALOGUE, CatalogueEntry
from models.config import LlamaConfig
from models.discover import discover
from models.gguf_file import GGUFFile
from models.repack import stored_bytes

# What a system and other programs leave to one program.
_COMFORTABLE, _POSSIBLE = 0.6, 0.85
# Loaded weights over the file's size, for a file that is not here to be looked into.
_LOADED_SHARE = 1.25
_REFERENCE_WINDOW = 2048
# The cost of a token is the same for all; this one has nothing to be compiled first.
_ANY_BACKEND = CacheConfig(backend=Backend.REFERENCE)


class Fit(Enum):
    """Whether a model with a window of 2048 tokens fits in this machine's memory."""

    FITS = "fits"
    TIGHT = "tight"
    TOO_LARGE = "too large"


@dataclass(frozen=True, kw_only=True)
class ListedModel:
    """A model by the name that loads it; path None where it must be fetched first."""

    spec: str
    size: int
    about: str
    path: Path | None


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a model is made of. problem: why it cannot be run.

    token_bytes: of a hot token's keys and values; cold_bytes: of a cold one's, by the
    default codecs.
    """

    quantization: str = ""
    weight_bytes: int = 0
    token_bytes: int = 0
    cold_bytes: int = 0
    problem: str = ""


def listed() -> list[ListedModel]:
    """Found models first, then the catalogue's others."""
    found = [
        ListedModel(spec=each.name, size=each.size, about=each.origin.value, path=each.path)
        for each in discover()
    ]
    here = {each.spec for each in found}
    others = [
        ListedModel(spec=entry.name, size=entry.size, about=entry.about, path=None)
        for entry in CATALOGUE
        if entry.name not in here
    ]
    return found + others


def examine(path: Path) -> Cost:
    """Read a file's header."""
    try:
        with GGUFFile(path) as file:
            shape = LlamaConfig.from_metadata(file.metadata).shape
            by_type: Counter[str] = Counter()
            for info in file.tensors.values():
                by_type[info.type.name] += info.nbytes
            quantization = by_type.most_common(1)[0][0] if by_type else ""
            weight_bytes = sum(stored_bytes(info) for info in file.tensors.values())
            return _cost(quantization, weight_bytes, shape)
    except EmberError as error:
        return Cost(problem=str(error))


def foretell(entry: CatalogueEntry) -> Cost:
    """What is known of a file before it is here."""
    return _cost(entry.quantization, int(entry.size * _LOADED_SHARE), entry.shape)


def _cost(quantization: str, weight_bytes: int, shape: ModelShape) -> Cost:
    plan = resolve(_ANY_BACKEND, shape)
    return Cost(
        quantization=quantization,
        weight_bytes=weight_bytes,
        token_bytes=plan.token_bytes,
        cold_bytes=plan.block_bytes // plan.sizes.block,
    )


def fit(model: ListedModel, cost: Cost | None, installed_bytes: int) -> Fit:
    """Judge by the weights and a window of 2048 tokens."""
    if cost is not None and cost.weight_bytes:
        needed = cost.weight_bytes + _REFERENCE_WINDOW * cost.token_bytes
    else:
        needed = int(model.size * _LOADED_SHARE)
    if needed < _COMFORTABLE * installed_bytes:
        return Fit.FITS
    return Fit.TIGHT if needed < _POSSIBLE * installed_bytes else Fit.TOO_LARGE
