"""The models that can be chosen, and what each would cost in memory.

Looks at disks, so it is run beside the screen. Knows no widget.
"""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from app.memory import LEAST_WINDOW, Fit, Memory, Need
from kvcache import Backend, CacheConfig, EmberError, resolve
from kvcache.tiers.plan import ModelShape
from models.finding.catalogue import CATALOGUE, CatalogueEntry
from models.finding.discover import discover
from models.gguf.file import GGUFFile
from models.gguf.repack import stored_bytes
from models.network.config import NetworkConfig

# Loaded weights over the file's size, for a file that is not here to be looked into.
_LOADED_SHARE = 1.25
# The cost of a token is the same for all; this one has nothing to be compiled first.
_ANY_BACKEND = CacheConfig(backend=Backend.REFERENCE)


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

    token_bytes: of a hot token's keys and values in layers that see all tokens; cold_bytes:
    of a cold one's, by the default codecs; window_bytes: of all other layers, full.
    least_bytes: of a cache of LEAST_WINDOW tokens.
    """

    quantization: str = ""
    weight_bytes: int = 0
    token_bytes: int = 0
    cold_bytes: int = 0
    window_bytes: int = 0
    least_bytes: int = 0
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
            shape = NetworkConfig.from_metadata(file.metadata).shape
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
    whole, layers = plan.kinds[plan.sizes], shape.layers
    least = replace(_ANY_BACKEND, max_tokens=min(LEAST_WINDOW, shape.context))
    return Cost(
        quantization=quantization,
        weight_bytes=weight_bytes,
        token_bytes=plan.token_bytes * whole // layers,
        cold_bytes=plan.block_bytes * whole // layers // plan.sizes.block,
        window_bytes=plan.max_bytes - whole * plan.bytes_of_kind(plan.sizes),
        least_bytes=resolve(least, shape).max_bytes,
    )


def fit(model: ListedModel, cost: Cost | None, here: Memory) -> Fit:
    """Judge by the weights and the smallest window that is not refused."""
    if cost is not None and cost.weight_bytes:
        need = Need(weights=cost.weight_bytes, cache=cost.least_bytes)
    else:
        need = Need(weights=int(model.size * _LOADED_SHARE), cache=0)
    return need.fit(here)
