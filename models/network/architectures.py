"""The architectures that ember runs: for each, which switches its files set.

One entry of ARCHITECTURES each. Knows the metadata's names; knows no tensor.
What each does was taken from llama.cpp's behaviour and is held to it
(docs/architectures.md).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np

from kvcache.errors import quoted
from models.errors import GGUFError, UnknownArchitectureError
from models.gguf.metadata import Metadata, MetadataValue
from models.network.switches import Activation, NormOf, Switches

# How alike two names must be, 0 to 1, for one to be called the other's kin.
_ALIKE = 0.7
_SMOLLM3_STEP = 4  # every fourth layer has no rope; files do not say so
_OLMO3_STEP, _GEMMA3_STEP = 4, 6  # every fourth or sixth layer sees all, where files do not say
# Layers of Gemma 3's sizes: of the smallest, of those whose rope is stretched, and of the one
# whose scores are scaled by another width.
_GEMMA3_SMALL, _GEMMA3_STRETCHED, _GEMMA3_LARGE = 26, (34, 48, 62), 62


@dataclass(frozen=True, kw_only=True)
class Keys:
    """The metadata of one architecture, by names without its prefix."""

    metadata: Metadata
    architecture: str

    def name(self, key: str) -> str:
        """The whole name."""
        return f"{self.architecture}.{key}"

    def get_int(self, key: str, default: int | None = None) -> int:
        """As `Metadata.get_int`."""
        return self.metadata.get_int(self.name(key), default)

    def get_float(self, key: str, default: float | None = None) -> float:
        """As `Metadata.get_float`."""
        return self.metadata.get_float(self.name(key), default)

    def get_string(self, key: str, default: str | None = None) -> str:
        """As `Metadata.get_string`."""
        return self.metadata.get_string(self.name(key), default)

    def get_bool(self, key: str, default: bool | None = None) -> bool:
        """As `Metadata.get_bool`."""
        return self.metadata.get_bool(self.name(key), default)

    def for_all_layers(self, key: str, default: int | None = None) -> int:
        """A number that a file may state once, or for each layer; here all layers are alike."""
        name, layers = self.name(key), self.layers
        if not isinstance(self.metadata.get(name), np.ndarray):
            return self.get_int(key, default)
        numbers = self.metadata.get_ints(name).tolist()
        if len(numbers) != layers:
            raise GGUFError(
                f"{name} has {len(numbers)} entries, expected one for each of {layers} layers"
            )
        if len(set(numbers)) != 1:
            raise GGUFError(f"{name} differs between layers, which is not supported")
        return int(numbers[0])

    @property
    def layers(self) -> int:
        """How many the file says."""
        return self.get_int("block_count")

    @property
    def head_dim(self) -> int:
        """Dimensions of a head: given, or what the width leaves for each."""
        heads = max(self.for_all_layers("attention.head_count"), 1)
        return self.get_int("attention.key_length", self.get_int("embedding_length") // heads)

    def windowed(self, step: int) -> frozenset[int]:
        """Layers that see a window: said for each, or all but the last of every so many."""
        key = self.name("attention.sliding_window_pattern")
        given = self.metadata.get(key)
        if not isinstance(given, np.ndarray):
            if (step := self.metadata.get_int(key, step)) < 0:
                raise GGUFError(f"{key} is {step}, expected a number of layers")
            return frozenset(at for at in range(self.layers) if not step or (at + 1) % step)
        if given.dtype.kind not in "biu" or len(given) != self.layers:
            raise GGUFError(
                f"{key} has {len(given)} entries of {given.dtype}, expected a boolean for "
                f"each of {self.layers} layers"
            )
        return frozenset(np.flatnonzero(given).tolist())


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """models: what people know it by. switches: as a file sets them.

    left_out: what files leave out that others say, by keys without prefix.
    frequency_factors: files may divide the frequencies of rope by factors, one set or two
    of which the window chooses. tunes_yarn: files set where YaRN begins and ends.
    """

    models: str
    switches: Callable[[Keys], Switches]
    left_out: Callable[[Keys], Mapping[str, MetadataValue]] | None = None
    frequency_factors: bool = False
    tunes_yarn: bool = False


def architecture_of(metadata: Metadata) -> tuple[Keys, Architecture]:
    """What `general.architecture` names. Raises UnknownArchitectureError for any other."""
    name = metadata.get_string("general.architecture")
    if name in ARCHITECTURES:
        keys, architecture = Keys(metadata=metadata, architecture=name), ARCHITECTURES[name]
        if architecture.left_out is not None:
            left_out = {keys.name(key): value for key, value in architecture.left_out(keys).items()}
            keys = Keys(metadata=Metadata(left_out | metadata), architecture=name)
        return keys, architecture
    kin = _KIN.get(name) or next(iter(get_close_matches(name, ARCHITECTURES, 1, _ALIKE)), None)
    nearest = f" (the nearest that is: {kin!r})" if kin else ""
    supported = ", ".join(f"{name} ({each.models})" for name, each in ARCHITECTURES.items())
    said = quoted(name, 40)
    raise UnknownArchitectureError(
        said, f"the architecture {said} is not supported{nearest}; ember runs {supported}"
    )


def _llama(_keys: Keys) -> Switches:
    return Switches()


def _mistral3(keys: Keys) -> Switches:
    span = keys.get_int("rope.scaling.original_context_length", keys.get_int("context_length"))
    scale = keys.get_float("attention.temperature_scale", 0.0)
    return Switches(temperature_scale=scale, temperature_span=span if scale else 1)


def _qwen2(_keys: Keys) -> Switches:
    return Switches(half_split=True)


def _qwen3(_keys: Keys) -> Switches:
    return Switches(half_split=True, query_key_norm=NormOf.HEAD)


def _phi3(_keys: Keys) -> Switches:
    # `attention.sliding_window` is not heeded: files carry it where the model has none.
    return Switches(half_split=True, fused=True)


def _smollm3(keys: Keys) -> Switches:
    return Switches(unturned=frozenset(range(_SMOLLM3_STEP - 1, keys.layers, _SMOLLM3_STEP)))


def _granite(keys: Keys) -> Switches:
    turns = keys.get_bool("rope.scaling.finetuned", True)
    return Switches(
        unturned=frozenset() if turns else frozenset(range(keys.layers)),
        attention_scale=keys.get_float("attention.scale", 0.0) or None,
        embedding_scale=keys.get_float("embedding_scale", 0.0) or 1.0,
        residual_scale=keys.get_float("residual_scale", 0.0) or 1.0,
        logit_divisor=keys.get_float("logit_scale"),
    )


def _olmo2(keys: Keys) -> Switches:
    window = keys.get_int("attention.sliding_window", 0) or None
    # The same base without scaling; a base of their own, `rope.freq_base_swa`, is not heeded.
    base = keys.get_float("rope.freq_base", 10000.0) if window else None
    return Switches(
        half_split=True,
        query_key_norm=NormOf.ROW,
        pre_norms=False,
        post_norms=True,
        window=window,
        windowed=keys.windowed(_OLMO3_STEP) if window else frozenset(),
        window_rope_base=base,
    )


def _gemma3_left_out(keys: Keys) -> Mapping[str, MetadataValue]:
    """That the context in its files is the stretched one; and what Ollama's say otherwise."""
    factor = 8.0 if keys.layers in _GEMMA3_STRETCHED else 1.0
    left_out: dict[str, MetadataValue] = {}
    if (told := keys.get_float("rope.scaling.factor", factor)) > 1:
        original = int(keys.get_int("context_length") / told)
        left_out = {"rope.scaling.original_context_length": original}
    if keys.name("rope.freq_base") in keys.metadata:
        return left_out
    return left_out | {
        "rope.freq_base": keys.get_float("rope.global.freq_base", 1e6),
        "rope.freq_base_swa": keys.get_float("rope.local.freq_base", 1e4),
        "rope.scaling.factor": factor,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.key_length": 256,
        "attention.value_length": 256,
    }


def _gemma3(keys: Keys) -> Switches:
    window = keys.get_int("attention.sliding_window", 0) or None
    hidden, heads = keys.get_int("embedding_length"), keys.for_all_layers("attention.head_count")
    large = keys.layers == _GEMMA3_LARGE
    # Ollama's files of the smallest model give Gemma 2's, which it has not got.
    capped = not (window and keys.layers == _GEMMA3_SMALL)
    return Switches(
        half_split=True,
        query_key_norm=NormOf.HEAD,
        post_norms=True,
        activation=Activation.GELU_TANH,
        window=window,
        windowed=keys.windowed(_GEMMA3_STEP) if window else frozenset(),
        window_rope_base=keys.get_float("rope.freq_base_swa", 10000.0) if window else None,
        attention_scale=(hidden // max(heads, 1)) ** -0.5 if large else None,
        embedding_scale=max(hidden, 1) ** 0.5,
        logit_cap=(capped and keys.get_float("final_logit_softcapping", 0.0)) or None,
    )


ARCHITECTURES = {
    "llama": Architecture(
        models="Llama, TinyLlama, SmolLM2, Mistral", switches=_llama, frequency_factors=True
    ),
    "mistral3": Architecture(
        models="Ministral 3, Mistral Small",
        switches=_mistral3,
        frequency_factors=True,
        tunes_yarn=True,
    ),
    "qwen2": Architecture(models="Qwen2, Qwen2.5", switches=_qwen2),
    "qwen3": Architecture(models="Qwen3", switches=_qwen3),
    "gemma3": Architecture(models="Gemma 3", switches=_gemma3, left_out=_gemma3_left_out),
    "phi3": Architecture(models="Phi-3, Phi-4", switches=_phi3, frequency_factors=True),
    "smollm3": Architecture(models="SmolLM3", switches=_smollm3),
    "granite": Architecture(models="Granite", switches=_granite, frequency_factors=True),
    "olmo2": Architecture(models="OLMo 2, OLMo 3", switches=_olmo2),
}

# Of architectures that ember does not run: the nearest of those that it does.
_KIN = {
    **dict.fromkeys(("deci", "llama4", "llama-embed", "baichuan", "internlm2", "xverse"), "llama"),
    **dict.fromkeys(("minicpm", "exaone", "command-r", "cohere2", "starcoder2"), "llama"),
    **dict.fromkeys(("mistral4", "deepseek2"), "mistral3"),
    **dict.fromkeys(("qwen", "qwen2moe", "qwen2vl"), "qwen2"),
    **dict.fromkeys(("qwen3moe", "qwen3vl", "qwen3vlmoe", "qwen3next", "qwen35"), "qwen3"),
    **dict.fromkeys(("gemma", "gemma2", "gemma3n", "gemma4", "gemma-embedding"), "gemma3"),
    **dict.fromkeys(("phi2", "phimoe"), "phi3"),
    **dict.fromkeys(("granitemoe", "granitehybrid"), "granite"),
    **dict.fromkeys(("olmo", "olmoe"), "olmo2"),
}
