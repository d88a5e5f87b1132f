"""One thing to measure, and what a measurement gives."""

from dataclasses import dataclass
from enum import Enum

# Tokens in the order of a multiplicative walk: no engine can win by repetition.
_STRIDE = 7919

# Prompt tokens that an engine reads before the clock runs.
WARM_UP = 64


class EngineName(Enum):
    """Who computes."""

    EMBER = "ember"
    MLX_LM = "mlx-lm"
    LLAMA_CPP = "llama.cpp"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One engine at one depth.

    depth: tokens in the cache before anything is timed.
    pp, tg: prompt tokens to read, then tokens to generate, both timed.
    threads: 0 leaves the engine its default.
    """

    engine: EngineName
    model: str
    kv: str
    backend: str
    threads: int
    depth: int
    pp: int
    tg: int

    @property
    def window(self) -> int:
        """Tokens that the cache must hold."""
        return self.depth + self.pp + self.tg + 1

    def tokens(self, start: int, count: int, vocabulary: int) -> list[int]:
        """`count` made-up prompt tokens from position `start` on."""
        return [(i * _STRIDE + 11) % vocabulary for i in range(start, start + count)]


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
