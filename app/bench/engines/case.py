"""One thing to measure, and what a measurement gives."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, Self

# Tokens in the order of a multiplicative walk: no engine can win by repetition.
_STRIDE = 7919
_ROW_STRIDE = 101

# Prompt tokens that an engine reads before the clock runs.
WARM_UP = 64

# The `kv` of a case without a cache: everything is computed anew for each token.
NO_CACHE = "none"


class EngineName(Enum):
    """Who computes."""

    EMBER = "ember"
    MLX_LM = "mlx-lm"
    LLAMA_CPP = "llama.cpp"


@dataclass(frozen=True, kw_only=True)
class LlamaCppSetting:
    """How llama.cpp runs, by its own names. n_threads: for prompts and for single tokens."""

    flash_attn: bool = True
    n_ubatch: int = 512
    n_threads: int

    def __str__(self) -> str:
        flash = "on" if self.flash_attn else "off"
        return f"flash_attn {flash}, n_ubatch {self.n_ubatch}, n_threads {self.n_threads}"


@dataclass(frozen=True, kw_only=True)
class MlxLmSetting:
    """How mlx-lm runs, by its own names. group_size: of a quantized cache, 0 for others."""

    prefill_step_size: int = 512
    dtype: str = "float32"
    group_size: int = 0

    def __str__(self) -> str:
        group = f", group_size {self.group_size}" if self.group_size else ""
        return f"prefill_step_size {self.prefill_step_size}, dtype {self.dtype}{group}"


# What a peer can be set to; ember runs with its defaults.
Setting = LlamaCppSetting | MlxLmSetting
_SETTINGS = {EngineName.LLAMA_CPP: LlamaCppSetting, EngineName.MLX_LM: MlxLmSetting}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One engine at one depth.

    kv: ember's codecs or NO_CACHE, llama.cpp's type or types, or mlx-lm's cache class.
    depth: tokens in the cache before anything is timed.
    pp, tg: prompt tokens to read, then tokens to generate, both timed.
    threads: 0 leaves the engine its default.
    batch: rows computed together, each with tokens of its own.
    setting: of a peer.
    """

    engine: EngineName
    model: str
    kv: str
    backend: str
    threads: int
    depth: int
    pp: int
    tg: int
    batch: int = 1
    setting: Setting | None = None

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """The case of which `as_json` gave the fields."""
        engine = EngineName(fields["engine"])
        setting = fields["setting"] and _SETTINGS[engine](**fields["setting"])
        return cls(**{**fields, "engine": engine, "setting": setting})

    def as_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self) | {"engine": self.engine.value}

    @property
    def window(self) -> int:
        """Tokens that the cache must hold."""
        return self.depth + self.pp + self.tg + 1

    def tokens(self, start: int, count: int, vocabulary: int, *, row: int = 0) -> list[int]:
        """`count` made-up prompt tokens of a row from position `start` on."""
        first = start + row * _ROW_STRIDE
        return [(i * _STRIDE + 11) % vocabulary for i in range(first, first + count)]

    def rows(self, start: int, count: int, vocabulary: int) -> list[list[int]]:
        """The same for all rows."""
        return [self.tokens(start, count, vocabulary, row=row) for row in range(self.batch)]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one run of a case gave.

    token_s: seconds of each generated token; kv_bytes: bytes held at the end.
    """

    backend: str
    threads: int
    pp_s: float
    token_s: tuple[float, ...]
    kv_bytes: int
    peak_rss_bytes: int
