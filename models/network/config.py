"""The dimensions of a network, read from GGUF metadata, and the switches it sets.

Knows the metadata's names; knows no tensor and allocates nothing.
Keys: the GGUF specification in ggml's docs/gguf.md.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self

from kvcache import ModelShape
from models.errors import GGUFError
from models.gguf.metadata import Metadata
from models.network.architectures import Architecture, Keys, architecture_of
from models.network.rope import Yarn
from models.network.switches import Switches

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
    "rope_magnitude": (1e-3, 1e3),
}
_UNSCALED = ("none", "llama3", "longrope")  # their factors come as tensors


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Dimensions of the network.

    architecture: as the file names it.
    rope_dims: leading dimensions of a head that turn.
    rope_factor: linear position scaling; 1.0 means none.
    yarn: how rope_factor is spread over the frequencies instead.
    rope_magnitude: factor of queries and keys where they turn.
    original_context: tokens the model was trained for before its context was stretched.
    context: tokens the model was trained for; before any linear scaling, where no
    original_context tells what that was.
    frequency_factors: the file may hold factors of rope's frequencies.
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
    rope_magnitude: float = 1.0
    yarn: Yarn | None = None
    original_context: int = 0
    switches: Switches = field(default_factory=Switches)
    architecture: str = "llama"
    frequency_factors: bool = True

    def __post_init__(self) -> None:
        for name in _BOUNDS:
            _bounded(name, getattr(self, name))
        if not 1 <= self._stretched <= _BOUNDS["context"][1]:
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
        if self.yarn is not None and self.rope_base == 1:
            raise GGUFError("got YaRN for a rope of base 1, expected a greater one")

    @property
    def shape(self) -> ModelShape:
        """What a cache needs to know."""
        windows = tuple(map(self.switches.window_of, range(self.layers)))
        return ModelShape(
            layers=self.layers,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            context=self._stretched,
            windows=windows if any(windows) else (),
        )

    @property
    def _stretched(self) -> int:
        """The context in tokens, as the rope stretches it."""
        if self.original_context not in (0, self.context):
            return max(self.context, int(self.original_context * self.rope_factor))
        return int(self.context * self.rope_factor)

    def named(self) -> tuple[str, ...]:
        """In words, where it differs from a Llama of its size."""
        return self.switches.named() + tuple(self._of_rope())

    def _of_rope(self) -> Iterator[str]:
        if self.rope_dims < self.head_dim:
            yield f"rope over {self.rope_dims} of {self.head_dim} dimensions"
        if self.rope_factor != 1:
            yarn = f" by YaRN from {self.yarn.original} tokens" if self.yarn else ""
            yield f"rope stretched {self.rope_factor:g} times{yarn}"
        if self.rope_magnitude != 1:
            yield f"queries and keys multiplied by {self.rope_magnitude:.4g} where they turn"

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """Read the keys of the architecture that the file names.

        Raises GGUFError for one part of a split file, an architecture that ember does
        not run, a mixture of experts, an unknown RoPE scaling, and missing or
        impossible dimensions.
        """
        _check_whole(metadata)
        keys, architecture = architecture_of(metadata)
        if experts := keys.get_int("expert_count", 0):
            raise GGUFError(f"mixtures of experts ({experts} here) are not supported")
        heads = keys.for_all_layers("attention.head_count")
        head_dim = keys.head_dim
        if keys.get_int("attention.value_length", head_dim) != head_dim:
            raise GGUFError("keys and values of different lengths are not supported")
        _bounded("layers", keys.layers)  # before anything is made for each of them
        scaling = _Scaling.of(keys, architecture)
        return cls(
            layers=keys.layers,
            hidden=keys.get_int("embedding_length"),
            ffn=keys.for_all_layers("feed_forward_length"),
            heads=heads,
            kv_heads=keys.for_all_layers("attention.head_count_kv", heads),
            head_dim=head_dim,
            context=keys.get_int("context_length"),
            norm_eps=keys.get_float("attention.layer_norm_rms_epsilon"),
            rope_dims=keys.get_int("rope.dimension_count", head_dim),
            rope_base=keys.get_float("rope.freq_base", 10000.0),
            rope_factor=scaling.factor,
            rope_magnitude=scaling.magnitude,
            yarn=scaling.yarn,
            original_context=scaling.original,
            switches=architecture.switches(keys),
            architecture=keys.architecture,
            frequency_factors=architecture.frequency_factors,
        )


@dataclass(frozen=True, kw_only=True)
class _Scaling:
    """How a file stretches rope."""

    factor: float
    magnitude: float
    original: int
    yarn: Yarn | None = None

    @classmethod
    def of(cls, keys: Keys, architecture: Architecture) -> Self:
        """Raises GGUFError for a scaling that nobody knows."""
        kind = keys.get_string("rope.scaling.type", "linear")
        legacy = keys.get_float("rope.scale_linear", 1.0)
        factor = keys.get_float("rope.scaling.factor", legacy) or 1.0
        original = keys.get_int(
            "rope.scaling.original_context_length", keys.get_int("context_length")
        )
        magnitude = keys.get_float("rope.scaling.attn_factor", 1.0)
        if kind in _UNSCALED:
            return cls(factor=1.0, magnitude=magnitude, original=original)
        if kind == "linear":
            return cls(factor=factor, magnitude=magnitude, original=original)
        if kind != "yarn":
            raise GGUFError(
                f"RoPE scaling {kind!r} is not supported, expected linear, yarn, "
                f"{', '.join(_UNSCALED)}"
            )
        given = keys if architecture.tunes_yarn else Keys(metadata=Metadata(), architecture="")
        yarn = Yarn(
            original=original,
            fast=given.get_float("rope.scaling.yarn_beta_fast", 32.0),
            slow=given.get_float("rope.scaling.yarn_beta_slow", 1.0),
            log_multiplier=given.get_float("rope.scaling.yarn_log_multiplier", 0.0),
        )
        return cls(
            factor=factor,
            magnitude=magnitude * yarn.magnitude(factor),
            original=original,
            yarn=yarn,
        )


def _bounded(name: str, value: float) -> None:
    least, most = _BOUNDS[name]
    if not least <= value <= most:
        raise GGUFError(f"got {name}={value}, expected {least:.9g} to {most:.9g}")


def _check_whole(metadata: Metadata) -> None:
    if (parts := metadata.get_int("split.count", 1)) > 1:
        raise GGUFError(
            f"this is one of {parts} parts of a model; join them into one file with: "
            "llama-gguf-split --merge FIRST-PART OUT.gguf"
        )
