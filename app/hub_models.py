"""What a model on the Hub would cost in memory, by the first bytes of its file.

Asks the Hub, so a screen runs it beside itself; writes nothing. Knows no widget.
"""

from collections.abc import Sequence
from dataclasses import replace

from app import memory
from app.model_list import Cost, cost_by_shape, foretell_by
from models.finding.choice import ListedFile
from models.finding.hub import HubFile
from models.finding.hub_listing import beginning
from models.finding.progress import ProgressCallback, silent
from models.gguf.header import read_leading_metadata
from models.network.architectures import ARCHITECTURES

# Dimensions usually stand in the first of a header, before the vocabulary's megabytes.
_PARTS = 1 << 20, 16 << 20
# Of a repository of many models so many are looked into.
_MOST_MODELS = 4


def weights_room() -> int:
    """Bytes that a model's weights can have on this machine."""
    return memory.cache_room(memory.memory().most, 0)


def runs(architecture: str) -> bool:
    """Whether ember runs models of it; True where nobody has told."""
    return not architecture or architecture in ARCHITECTURES


def examine(hub: HubFile, quantization: str, report: ProgressCallback = silent) -> Cost:
    """By the header of a file that is not here. Raises FetchError."""
    for most in _PARTS:
        begun = beginning(hub, most, report)
        metadata = read_leading_metadata(memoryview(begun.data), begun.size)
        cost = foretell_by(metadata, quantization, begun.size)
        whole = len(begun.data) >= begun.size
        if whole or not cost.problem or not runs(metadata.get_string("general.architecture", "")):
            break
    return cost


def costs_of(files: Sequence[ListedFile], report: ProgressCallback = silent) -> list[Cost]:
    """Of each file of a repository; one header is read of each model. Raises FetchError."""
    known: dict[str, Cost] = {}
    for file in files:
        if file.model not in known and file.parts == 1 and len(known) < _MOST_MODELS:
            known[file.model] = examine(file.hub, file.quantization, report)
    return [_cost_of(file, known.get(file.model, Cost())) for file in files]


def _cost_of(file: ListedFile, kin: Cost) -> Cost:
    """Of a file, by what is known of another of the same model."""
    if file.parts > 1:
        return Cost(problem=f"it is in {file.parts} parts, and ember runs whole files")
    if kin.shape is None:
        return replace(kin, quantization=file.quantization, weight_bytes=file.size)
    return cost_by_shape(file.quantization, file.size, kin.shape)
