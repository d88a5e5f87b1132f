"""Dimensions of networks that people quote figures of, and of a loaded file.

Sources: the models' own config.json (TinyLlama-1.1B-Chat-v1.0, Llama-2-7b, phi-2).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kvcache import Backend, ModelShape

if TYPE_CHECKING:
    from models.gguf.header import TensorInfo
    from models.network.config import NetworkConfig


@dataclass(frozen=True, kw_only=True)
class Network:
    """A transformer's dimensions.

    ffn_matrices: 3 for gated feed-forward layers (Llama), 2 for plain ones (phi-2).
    weight_bytes: of the weights, as in the file. windows: as a model's shape has them.
    """

    name: str
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    weight_bytes: int
    ffn_matrices: int = 3
    windows: tuple[int | None, ...] = ()

    @property
    def shape(self) -> ModelShape:
        """What a cache needs to know."""
        return ModelShape(
            layers=self.layers,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            context=self.context,
            windows=self.windows,
        )


# Weights: of Q4_K_M files; phi-2 as the original claim ran it, in fp16.
TINYLLAMA = Network(
    name="TinyLlama 1.1B",
    layers=22,
    hidden=2048,
    ffn=5632,
    heads=32,
    kv_heads=4,
    head_dim=64,
    vocabulary=32000,
    context=2048,
    weight_bytes=668_000_000,
)
LLAMA_2_7B = Network(
    name="Llama-2-7B",
    layers=32,
    hidden=4096,
    ffn=11008,
    heads=32,
    kv_heads=32,
    head_dim=128,
    vocabulary=32000,
    context=4096,
    weight_bytes=4_081_000_000,
)
PHI_2 = Network(
    name="phi-2",
    layers=32,
    hidden=2560,
    ffn=10240,
    heads=32,
    kv_heads=32,
    head_dim=80,
    vocabulary=51200,
    context=2048,
    weight_bytes=5_560_000_000,
    ffn_matrices=2,
)

# As --shape takes them.
NETWORKS = {"tinyllama": TINYLLAMA, "llama-2-7b": LLAMA_2_7B, "phi-2": PHI_2}


def network_of(path: str) -> Network:
    """The dimensions of a GGUF file; reads its header only."""
    file, config, entries = _header(path)
    return Network(
        name=file.stem,
        layers=config.layers,
        hidden=config.hidden,
        ffn=config.ffn,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        vocabulary=entries["token_embd.weight"].rows,
        context=config.shape.context,
        weight_bytes=sum(info.nbytes for info in entries.values()),
        windows=config.shape.windows,
    )


def held_bytes(path: str, backend: Backend) -> int:
    """Bytes of a file's weights in memory, as a backend holds them."""
    from models.loader import bytes_by

    _, _, entries = _header(path)
    return sum(map(bytes_by(backend), entries.values()))


def token_bytes(path: str) -> int:
    """Bytes of a file's weights that each token reads: not the embedding's table, of which it
    reads a row, unless that is the output's too."""
    _, _, entries = _header(path)
    table = entries["token_embd.weight"].nbytes if "output.weight" in entries else 0
    return sum(info.nbytes for info in entries.values()) - table


def _header(path: str) -> tuple[Path, "NetworkConfig", "dict[str, TensorInfo]"]:
    """Of a file: where it is, its network, and the tensors that are loaded."""
    from models.finding.source import locate
    from models.gguf.file import GGUFFile
    from models.network.config import NetworkConfig
    from models.network.shapes import tensors_to_read

    with GGUFFile(locate(path)) as file:
        config = NetworkConfig.from_metadata(file.metadata)
        return file.path, config, tensors_to_read(file, config)
