"""How a model's makers would have its tokens drawn: by its file, else by what they published.

Knows no sampler, and nothing of what a user has set.
"""

import re
from dataclasses import dataclass, replace
from typing import Any, Self

from models.errors import GGUFError
from models.gguf.metadata import Metadata

# Characters of a name that are looked at.
_LONGEST_NAME = 200
# A setting's key in a file, and its bounds.
_KEYS: dict[str, tuple[str, float, float]] = {
    "temp": ("general.sampling.temp", 0, 100),
    "top_p": ("general.sampling.top_p", 1e-9, 1),
    "top_k": ("general.sampling.top_k", 0, 2**31 - 1),
    "min_p": ("general.sampling.min_p", 0, 1),
    "repeat_penalty": ("general.sampling.penalty_repeat", 0.01, 10),
}


@dataclass(frozen=True, kw_only=True)
class Recommended:
    """Sampling settings of one model; a cut-off, or a penalty, of which nobody speaks is off.

    source: who says so.
    """

    temp: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    source: str = ""

    @property
    def values(self) -> dict[str, float]:
        """The settings by their names."""
        return {name: getattr(self, name) for name in _KEYS}


# Where the makers say nothing. The penalty is Ollama's for all models, over as many tokens:
# enough to leave a circle of words, and too little to be seen elsewhere.
GENERIC = Recommended(
    top_p=0.95,
    min_p=0.05,
    repeat_penalty=1.1,
    source="ember's choice for models of which nothing is known",
)


@dataclass(frozen=True, kw_only=True)
class _Family:
    """Models whose name and architecture are such; plain: where they do not think, if otherwise."""

    name: str
    architectures: tuple[str, ...]
    usual: Recommended
    plain: Recommended | None = None


_CARDS = "https://huggingface.co"
_QWEN3 = Recommended(top_k=20, source=f"{_CARDS}/Qwen/Qwen3-8B")
_LLAMA = Recommended(
    temp=0.6, top_p=0.9, source=f"{_CARDS}/meta-llama/Llama-3.1-8B-Instruct, generation_config"
)
# The first that fits is taken: distills stand before what they were distilled into.
_FAMILIES = (
    _Family(
        name=r"deepseek[ _-]?r1",
        architectures=("llama", "qwen2", "qwen3"),
        usual=Recommended(temp=0.6, top_p=0.95, source=f"{_CARDS}/deepseek-ai/DeepSeek-R1"),
    ),
    _Family(
        name=r"qwq",
        architectures=("qwen2",),
        usual=Recommended(temp=0.6, top_p=0.95, top_k=30, source=f"{_CARDS}/Qwen/QwQ-32B"),
    ),
    _Family(
        name=r"qwen[ _-]?2\.5",
        architectures=("qwen2",),
        usual=Recommended(
            top_p=0.8,
            top_k=20,
            repeat_penalty=1.05,
            source=f"{_CARDS}/Qwen/Qwen2.5-7B-Instruct, generation_config",
        ),
    ),
    _Family(
        name=r"",
        architectures=("qwen3",),
        usual=replace(_QWEN3, temp=0.6, top_p=0.95),
        plain=replace(_QWEN3, temp=0.7, top_p=0.8),
    ),
    _Family(
        name=r"",
        architectures=("gemma3",),
        usual=Recommended(temp=1.0, top_p=0.95, top_k=64, source=f"{_CARDS}/google/gemma-3-4b-it"),
    ),
    _Family(
        name=r"",
        architectures=("smollm3",),
        usual=Recommended(temp=0.6, top_p=0.95, source=f"{_CARDS}/HuggingFaceTB/SmolLM3-3B"),
    ),
    # At its makers' 0.2 so small a model answers the plainest question wrongly half of the time.
    _Family(
        name=r"smollm.*135m",
        architectures=("llama",),
        usual=Recommended(temp=0.0, source="ember's choice for a model so small: the likeliest"),
    ),
    _Family(
        name=r"smollm",
        architectures=("llama",),
        usual=Recommended(
            temp=0.2, top_p=0.9, source=f"{_CARDS}/HuggingFaceTB/SmolLM2-135M-Instruct"
        ),
    ),
    _Family(
        name=r"tiny[ _-]?llama",
        architectures=("llama",),
        usual=Recommended(
            top_p=0.95, top_k=50, source=f"{_CARDS}/TinyLlama/TinyLlama-1.1B-Chat-v1.0"
        ),
    ),
    # Not OpenLLaMA 3B, nor a Llama of 30B.
    _Family(name=r"llama[ _-]?v?[23](?![\db])", architectures=("llama",), usual=_LLAMA),
    _Family(
        name=r"ministral.*instruct",
        architectures=("mistral3",),
        usual=Recommended(temp=0.05, source=f"{_CARDS}/mistralai/Ministral-3-3B-Instruct-2512"),
    ),
    _Family(
        name=r"magistral",
        architectures=("mistral3", "llama"),
        usual=Recommended(top_p=0.95, source=f"{_CARDS}/mistralai/Magistral-Small-2506"),
    ),
    _Family(
        name=r"mistral[ _-]?small",
        architectures=("mistral3", "llama"),
        usual=Recommended(temp=0.15, source=f"{_CARDS}/mistralai/Mistral-Small-24B-Instruct-2501"),
    ),
    _Family(
        name=r"mistral[ _-]?nemo",
        architectures=("llama",),
        usual=Recommended(temp=0.3, source=f"{_CARDS}/mistralai/Mistral-Nemo-Instruct-2407"),
    ),
    _Family(
        name=r"phi[ _-]?4.*reasoning",
        architectures=("phi3",),
        usual=Recommended(
            temp=0.8, top_p=0.95, top_k=50, source=f"{_CARDS}/microsoft/Phi-4-reasoning"
        ),
    ),
    _Family(
        name=r"olmo[ _-]?3",
        architectures=("olmo2",),
        usual=Recommended(temp=0.6, top_p=0.95, source=f"{_CARDS}/allenai/Olmo-3-7B-Think"),
    ),
)


@dataclass(frozen=True, kw_only=True)
class SamplingDefaults:
    """What is recommended for a model. usual: as it is used to answer; plain: without thinking.

    notes: a sentence for each setting of the file that cannot be one.
    """

    usual: Recommended = GENERIC
    plain: Recommended = GENERIC
    notes: tuple[str, ...] = ()

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Self:
        """By a file: what it says itself goes before what its family's makers published."""
        told, notes = _told(metadata)
        usual = plain = GENERIC
        if family := _family(metadata):
            usual, plain = family.usual, family.plain or family.usual
        if told:
            silent = Recommended()
            usual, plain = (
                replace(silent if each is GENERIC else each, **told, source="the model's file")
                for each in (usual, plain)
            )
        return cls(usual=usual, plain=plain, notes=notes)

    def recommended(self, think: bool | None, *, thinks: bool, has_switch: bool) -> Recommended:
        """For a model that `thinks`, where a user wants it so (`think`; None: as it is used to)."""
        is_plain = not thinks or (think is False and has_switch)
        return self.plain if is_plain else self.usual


def _told(metadata: Metadata) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The settings that the file has, and a note for each that it should not have."""
    told: dict[str, Any] = {}
    notes = []
    for name, (key, low, high) in _KEYS.items():
        if key not in metadata:
            continue
        try:
            value = metadata.get_int(key) if name == "top_k" else metadata.get_float(key)
            if not low <= value <= high:
                raise GGUFError(f"{key} is {value:g}, expected {low:g} to {high:g}")
        except GGUFError as error:
            notes.append(f"{error}; it is not used")
        else:
            told[name] = value
    return told, tuple(notes)


def _family(metadata: Metadata) -> _Family | None:
    architecture, *names = (
        metadata.get(f"general.{key}") for key in ("architecture", "name", "basename")
    )
    called = " ".join(name[:_LONGEST_NAME] for name in names if isinstance(name, str)).casefold()
    return next(
        (
            each
            for each in _FAMILIES
            if architecture in each.architectures and re.search(each.name, called)
        ),
        None,
    )
