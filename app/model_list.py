"""The models that can be chosen, and what each would cost in memory.

Looks at disks, so a screen runs it beside itself. Knows no widget.
"""

from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from app.memory import LEAST_WINDOW, Fit, Memory, Need, cache_room, largest_window
from kvcache import Backend, CacheConfig, EmberError, resolve
from kvcache.tiers.plan import ModelShape
from models.errors import GGUFError, UnknownArchitectureError
from models.finding.catalogue import CATALOGUE
from models.finding.discover import discover
from models.finding.entry import CatalogueEntry
from models.gguf.file import GGUFFile
from models.gguf.metadata import Metadata
from models.gguf.tensor_types import TensorType
from models.loader import decoded_bytes, title_of
from models.network.config import NetworkConfig
from models.network.shapes import tensors_to_read
from models.title import quantization, readable, titled

# The cost of a token is the same for all; this one has nothing to be compiled first.
_ANY_BACKEND = CacheConfig(backend=Backend.REFERENCE)


@dataclass(frozen=True, kw_only=True)
class ListedModel:
    """A model by the name that loads it. size: bytes, None where nobody has told them.

    path: None where it must be fetched first, which its entry says how.
    """

    spec: str
    size: int | None
    about: str
    path: Path | None
    entry: CatalogueEntry | None = None

    @property
    def remark(self) -> str:
        """What is said of it, without its name."""
        return self.about.partition(": ")[2] or self.about


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a model is made of. title: for people. problem: why it cannot be run.

    weight_bytes: in memory; None where nobody has told the file's size. token_bytes: of a hot
    token's keys and values in layers that see all tokens; cold_bytes: of a cold one's, by the
    default codecs; window_bytes: of all other layers, full. least_bytes: of a cache of
    LEAST_WINDOW tokens.
    """

    title: str = ""
    quantization: str = ""
    weight_bytes: int | None = None
    shape: ModelShape | None = None
    token_bytes: int = 0
    cold_bytes: int = 0
    window_bytes: int = 0
    least_bytes: int = 0
    problem: str = ""


class Room(Enum):
    """How much of what a model was made for this machine can hold."""

    FITS = "fits"
    SMALLER = "fits with a smaller window"
    TOO_LARGE = "too large"
    UNKNOWN = "size unknown"
    CANNOT_RUN = "cannot be run"


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """window: tokens that a cache beside the model could hold; None where that is not known."""

    room: Room
    window: int | None = None

    @property
    def in_words(self) -> str:
        """Whether it fits, and how much of it."""
        if self.room is Room.SMALLER:
            return f"fits with {self.window:,} tokens"
        return str(self.room.value)


def listed() -> list[ListedModel]:
    """Found models first, then the catalogue's others."""
    found = [
        ListedModel(spec=each.name, size=each.size, about=each.origin.value, path=each.path)
        for each in discover()
    ]
    here = {each.spec for each in found}
    others = [
        ListedModel(spec=entry.name, size=entry.size, about=entry.about, path=None, entry=entry)
        for entry in CATALOGUE
        if entry.name not in here
    ]
    return found + others


def cost_of(model: ListedModel, *, decoded: bool = False) -> Cost:
    """By the file's header where it is here, else by what the catalogue says.

    decoded: whether weights will be held as floats (`only_reference`).
    """
    if model.path is not None:
        return _examine(model.path, decoded=decoded)
    return foretell(model.entry, decoded=decoded) if model.entry is not None else Cost()


def _examine(path: Path, *, decoded: bool) -> Cost:
    stored, name = "", readable(path.stem)
    try:
        with GGUFFile(path) as file:
            name = title_of(path, file.metadata)
            stored = quantization(file.metadata, file.tensors.values())
            try:
                config = NetworkConfig.from_metadata(file.metadata)
            except UnknownArchitectureError as error:
                return Cost(title=titled(name, stored), problem=f"architecture {error.name}")
            entries = tensors_to_read(file, config).values()
            held = [decoded_bytes(each.shape) if decoded else each.nbytes for each in entries]
            return cost_by_shape(stored, sum(held), config.shape, titled(name, stored))
    except EmberError as error:
        return Cost(title=titled(name, stored), problem=str(error))


def foretell(entry: CatalogueEntry, *, decoded: bool = False) -> Cost:
    """What is known of a file before it is here."""
    name = titled(entry.title, entry.quantization)
    weights = _decoded(entry) if decoded else entry.size
    return cost_by_shape(entry.quantization, weights, entry.shape, name)


def _decoded(entry: CatalogueEntry) -> int | None:
    """About what weights take as floats: as if all were stored as the file's name says."""
    kinds = [kind for kind in TensorType if entry.quantization.startswith(kind.name)]
    if entry.size is None or not kinds:
        return None
    kind = max(kinds, key=lambda each: len(each.name))
    return decoded_bytes((entry.size // kind.block_bytes, kind.block_size))


def foretell_by(metadata: Metadata, quantization: str, size: int) -> Cost:
    """What a file's metadata says of it, before its tensors are here."""
    try:
        shape = NetworkConfig.from_metadata(metadata).shape
    except UnknownArchitectureError as error:
        return Cost(problem=f"architecture {error.name}")
    except GGUFError as error:
        return Cost(problem=str(error))
    return cost_by_shape(quantization, size, shape)


def cost_by_shape(
    quantization: str, weight_bytes: int | None, shape: ModelShape, name: str = ""
) -> Cost:
    """What weights of a size and a cache of such a model take. name: for people."""
    plan = resolve(_ANY_BACKEND, shape)
    whole, layers = plan.kinds[plan.sizes], shape.layers
    least = replace(_ANY_BACKEND, max_tokens=min(LEAST_WINDOW, shape.context))
    return Cost(
        title=name,
        quantization=quantization,
        weight_bytes=weight_bytes,
        shape=shape,
        token_bytes=plan.token_bytes * whole // layers,
        cold_bytes=plan.block_bytes * whole // layers // plan.sizes.block,
        window_bytes=plan.max_bytes - plan.bytes_of_kind(plan.sizes),
        least_bytes=resolve(least, shape).max_bytes,
    )


def outlook(cost: Cost, here: Memory) -> Outlook:
    """Whether the weights and a cache of the model's whole context fit, or of how much of it."""
    if cost.problem:
        return Outlook(room=Room.CANNOT_RUN)
    if cost.weight_bytes is None or cost.shape is None:
        return Outlook(room=Room.UNKNOWN)
    window = largest_window(CacheConfig(), cost.shape, cache_room(here.most, cost.weight_bytes))
    if window is None:
        return Outlook(room=Room.TOO_LARGE)
    # Whole blocks of tokens, some fewer than the context.
    whole = resolve(_ANY_BACKEND, cost.shape).max_tokens
    return Outlook(room=Room.FITS if window == whole else Room.SMALLER, window=window)


def fit(model: ListedModel, cost: Cost | None, here: Memory) -> Fit | None:
    """Judge by the weights and the smallest window that is not refused; None without a size."""
    if cost is not None and cost.weight_bytes:
        return Need(weights=cost.weight_bytes, cache=cost.least_bytes).fit(here)
    return None if model.size is None else Need(weights=model.size, cache=0).fit(here)
