"""The dimensions of a Llama-family network, read from GGUF metadata.

Knows the metadata's names; knows no tensor and allocates nothing.
Keys: the GGUF specification in ggml's docs/gguf.md.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from kvcache import ModelShape
from models.errors import GGUFError
from models.gguf.metadata import Metadata

_ARCHITECTURE = "llama"
# Far beyond any model, yet harmless: what lies outside is damage, and would cost time and
# memory, or overflow. Float32 tells positions apart up to 2^24.
_BOUNDS: dict[str, tuple[float, float]] = {
    "layers": (1, 1 << 12),
    "hidden": (1, 1 << 20),
    "ffn": (1, 1 << 22),
    "heads": (1, 1 << 16),
    "kv_heads": (1, 1 << 16),
    "head_dim": (1, 1 << 16),
    "context": (1, 1 << 24),
    "norm_eps": (1e-15, 1.0),
    "rope_base": (1.0, 1e18),
    "rope_factor": (1e-6, 1e6),
}
_UNSCALED = ("none", "llama3")  # Llama-3's factors come as the tensor rope_freqs.weight


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Dimensions of the network.

    rope_dims: leading dimensions of a head that turn.
    rope_factor: linear position scaling; 1.0 means none.
    context: tokens the model was trained for, before any scaling.
    """

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    norm_eps: float
    rope_dims: int
    rope_base: float
    rope_factor: float = 1.0

    def __post_init__(self) -> None:
        for name, (least, most) in _BOUNDS.items():
            if not least <= getattr(self, name) <= most:
                raise GGUFError(
                    f"got {name}={getattr(self, name)}, expected {least:.9g} to {most:.9g}"
                )
        if not 1 <= int(self.context * self.rope_factor) <= _BOUNDS["context"][1]:
            raise GGUFError(
                f"got a context of {self.context} tokens, stretched {self.rope_factor:g} times, "
                f"expected 1 to {_BOUNDS['context'][1]} tokens"
            )
        if self.heads % self.kv_heads:
            raise GGUFError(
                f"got {self.heads} heads over {self.kv_heads} KV heads, expected a multiple"
            )
        if not 0 < self.rope_dims <= self.head_dim or self.rope_dims % 2:
            raise GGUFError(
                f"got {self.rope_dims} turning dimensions of {self.head_dim}, "
                "expected an even number of them"
            )

    @property
    def shape(self) -> ModelShape:
        """What a cache needs to know."""
        return ModelShape(
            layers=self.layers,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            context=int(self.context * self.rope_factor),
        )

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Read the `llama.*` keys.

        Raises GGUFError for one part of a split file, another architecture, a
        mixture of experts, an unknown RoPE scaling, and missing or impossible
        dimensions.
        """
        _check_whole(metadata)
        _check_architecture(metadata)
        hidden = metadata.get_int("llama.embedding_length")
        layers = metadata.get_int("llama.block_count")
        heads = _for_all_layers(metadata, "llama.attention.head_count", layers)
        head_dim = metadata.get_int("llama.attention.key_length", hidden // max(heads, 1))
        if metadata.get_int("llama.attention.value_length", head_dim) != head_dim:
            raise GGUFError("keys and values of different lengths are not supported")
        return cls(
            layers=layers,
            hidden=hidden,
            ffn=_for_all_layers(metadata, "llama.feed_forward_length", layers),
            heads=heads,
            kv_heads=_for_all_layers(metadata, "llama.attention.head_count_kv", layers, heads),
            head_dim=head_dim,
            context=metadata.get_int("llama.context_length"),
            norm_eps=metadata.get_float("llama.attention.layer_norm_rms_epsilon"),
            rope_dims=metadata.get_int("llama.rope.dimension_count", head_dim),
            rope_base=metadata.get_float("llama.rope.freq_base", 10000.0),
            rope_factor=_rope_factor(metadata),
        )


def _check_whole(metadata: Metadata) -> None:
    if (parts := metadata.get_int("split.count", 1)) > 1:
        raise GGUFError(
            f"this is one of {parts} parts of a model; join them into one file with: "
            "llama-gguf-split --merge FIRST-PART OUT.gguf"
        )


def _check_architecture(metadata: Metadata) -> None:
    architecture = metadata.get_string("general.architecture")
    if architecture != _ARCHITECTURE:
        raise GGUFError(
            f"the architecture {architecture!r} is not supported; ember runs "
            f"{_ARCHITECTURE!r} files (Llama, TinyLlama, SmolLM2, Mistral and their kin)"
        )
    if experts := metadata.get_int("llama.expert_count", 0):
        raise GGUFError(f"mixtures of experts ({experts} here) are not supported")


def _for_all_layers(metadata: Metadata, key: str, layers: int, default: int | None = None) -> int:
    """A number that a file may state once, or for each layer; here all layers are alike."""
    if not isinstance(metadata.get(key), np.ndarray):
        return metadata.get_int(key, default)
    numbers = metadata.get_ints(key).tolist()
    if len(numbers) != layers:
        raise GGUFError(
            f"{key} has {len(numbers)} entries, expected one for each of {layers} layers"
        )
    if len(set(numbers)) != 1:
        raise GGUFError(f"{key} differs between layers, which is not supported")
    return int(numbers[0])


def _rope_factor(metadata: Metadata) -> float:
    legacy = metadata.get_float("llama.rope.scale_linear", 1.0)
    factor = metadata.get_float("llama.rope.scaling.factor", legacy)
    kind = metadata.get_string("llama.rope.scaling.type", "linear")
    if kind == "linear":
        return factor or 1.0
    if kind not in _UNSCALED:
        raise GGUFError(f"RoPE scaling {kind!r} is not supported, expected linear, llama3 or none")
    return 1.0
