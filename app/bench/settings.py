"""What each section measures unless flags say otherwise: in full, and with --quick.

Imports nothing heavy: the command line reads it. A field's name is its flag's.
Expected seconds are those of a machine with two x86-64 cores and the default model.
"""

from dataclasses import dataclass
from typing import Self

from app.cache_flags import DEFAULT_KV

BASELINE_KV = "h4"

# The tiers of every row of `quality` that does not say otherwise: with few hot tokens
# nearly all that is read is encoded.
QUALITY_HOT = 128
QUALITY_SINKS = 4


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Common to all sections. model: a path; threads: 0 means one per physical core."""

    model: str
    backend: str = "auto"
    threads: int = 0

    @property
    def longest(self) -> int:
        """Tokens of the longest cache beside the loaded model; 0 where none is loaded."""
        return 1

    @classmethod
    def quick(cls, common: "Settings") -> Self:
        """For a look: all sections together end in two minutes."""
        return cls(**vars(common))

    @classmethod
    def whole(cls, common: "Settings") -> Self:
        """As part of a run of all sections."""
        return cls(**vars(common))


@dataclass(frozen=True, kw_only=True)
class SpeedSettings(Settings):
    """See `case.Case` for the fields' meaning.

    batch: rows computed together. peers: measure llama.cpp and mlx-lm too.
    short: the short protocol too: 10, 50 and 100 tokens, with and without a cache.
    """

    kv: tuple[str, ...] = (DEFAULT_KV, "f16")
    depths: tuple[int, ...] = (0, 2048)
    pp: int = 512
    tg: int = 64
    reps: int = 3
    batch: tuple[int, ...] = (1,)
    short: bool = False
    peers: bool = False

    @property
    def longest(self) -> int:
        """Of the deepest case, or of the rows of the largest batch."""
        new = self.pp + self.tg
        return max(max(self.depths) + new, max(self.batch) * (self.depths[0] + new))

    @classmethod
    def quick(cls, common: Settings) -> Self:
        """One depth, once."""
        return cls(**vars(common), depths=(0,), pp=128, tg=32, reps=1, short=True)

    @classmethod
    def whole(cls, common: Settings) -> Self:
        """Everything there is."""
        kv, depths = (DEFAULT_KV, "f16", "q8", "q4"), (0, 2048, 8000)
        return cls(**vars(common), kv=kv, depths=depths, batch=(1, 4), short=True, peers=True)


@dataclass(frozen=True, kw_only=True)
class AttentionSettings(Settings):
    """contexts: tokens held. reps: timed steps of each kernel. shape: whose dimensions."""

    shape: str = "loaded"
    kv: tuple[str, ...] = (DEFAULT_KV, "f16", "q8", "q4", "h4", "kvarn4")
    contexts: tuple[int, ...] = (512, 2048, 8192)
    reps: int = 15

    @property
    def longest(self) -> int:
        """Of the longest context."""
        return max(self.contexts)

    @classmethod
    def quick(cls, common: Settings) -> Self:
        """One context."""
        return cls(**vars(common), kv=(DEFAULT_KV, "f16"), contexts=(1024,), reps=5)


@dataclass(frozen=True, kw_only=True)
class QualitySettings(Settings):
    """kv: pairs to measure; none means every codec alone and together, and good mixes.

    hot, sinks: further tiers, which the `varied` pairs are measured with.
    allocate: further rows of so many bits, whose codecs are chosen layer by layer.
    tokens: of each text; skip: first positions that are not scored.
    """

    kv: tuple[str, ...] = ()
    allocate: tuple[float, ...] = ()
    varied: tuple[str, ...] = (DEFAULT_KV, BASELINE_KV, "q4", "h8")
    hot: tuple[int, ...] = (0, 256, 512)
    sinks: tuple[int, ...] = (0,)
    tokens: int = 1536
    skip: int = 256

    @classmethod
    def quick(cls, common: Settings) -> Self:
        """Five pairs on the beginning of each text."""
        pairs = (DEFAULT_KV, "q8", "q4", "kvarn4")
        return cls(**vars(common), kv=pairs, hot=(), sinks=(), tokens=448)

    @classmethod
    def whole(cls, common: Settings) -> Self:
        """Everything there is."""
        return cls(**vars(common), allocate=(4.4, 3.4, 2.6))


@dataclass(frozen=True, kw_only=True)
class EndlessSettings(Settings):
    """ctx: tokens the window holds. tokens: of the text; generate: to draw after that.

    samples: spans in each quarter of the text that are recomputed.
    """

    ctx: int = 1024
    tokens: int = 20_000
    generate: int = 20_000
    samples: int = 10

    @classmethod
    def quick(cls, common: Settings) -> Self:
        """Twice the smallest window."""
        return cls(**vars(common), ctx=448, tokens=896, generate=120, samples=1)


@dataclass(frozen=True, kw_only=True)
class WakeSettings(Settings):
    """tokens: of the chat. reps: questions to it."""

    tokens: int = 3000
    reps: int = 7

    @classmethod
    def quick(cls, common: Settings) -> Self:
        """A short chat."""
        return cls(**vars(common), tokens=300, reps=1)


@dataclass(frozen=True, kw_only=True)
class ServeSettings(Settings):
    """clients: that ask together. tokens: of an answer. prefix: tokens that two requests share.

    reps: runs of all. peers: measure llama.cpp's server too.
    """

    clients: int = 8
    tokens: int = 64
    prefix: int = 2000
    reps: int = 3
    peers: bool = False

    @property
    def longest(self) -> int:
        """The server weighs its caches itself."""
        return 0

    @classmethod
    def quick(cls, common: Settings) -> Self:
        """Two clients, once."""
        return cls(**vars(common), clients=2, tokens=8, prefix=200, reps=1)

    @classmethod
    def whole(cls, common: Settings) -> Self:
        """Everything there is."""
        return cls(**vars(common), peers=True)


@dataclass(frozen=True, kw_only=True)
class NeedleSettings(Settings):
    """lengths: of the text before a question. needles: facts, one a text. hot: tokens."""

    kv: tuple[str, ...] = (DEFAULT_KV,)
    lengths: tuple[int, ...] = (600, 900, 1200, 1500, 1800, 2100, 2500, 3000)
    needles: int = 24
    hot: int = 256

    @classmethod
    def quick(cls, common: Settings) -> Self:
        """Two facts, not far back."""
        return cls(**vars(common), lengths=(600,), needles=2)


@dataclass(frozen=True, kw_only=True)
class LookupSettings(Settings):
    """reps: runs of each task, with drafts and without. tokens: of an answer at most.

    tasks: their names; all where there are none.
    """

    reps: int = 3
    tokens: int = 256
    tasks: tuple[str, ...] = ()

    @classmethod
    def quick(cls, common: Settings) -> Self:
        """The beginning of one task."""
        return cls(**vars(common), reps=1, tokens=24, tasks=("edit code",))


@dataclass(frozen=True, kw_only=True)
class HookedSettings(Settings):
    """depths: tokens held before any is generated. step: prompt tokens read at a time.

    tg: tokens of a turn. reps: turns of each cache.
    """

    depths: tuple[int, ...] = (0, 2048, 8192)
    step: int = 512
    tg: int = 8
    reps: int = 3

    @classmethod
    def quick(cls, common: Settings) -> Self:
        """One short prompt."""
        return cls(**vars(common), depths=(64,), tg=2, reps=1)


@dataclass(frozen=True, kw_only=True)
class MemorySettings(Settings):
    """contexts: windows, in tokens; filled_bytes: the largest cache of a layer that is filled."""

    kv: tuple[str, ...] = ("f16", DEFAULT_KV, "q8", "h4", "turbo2")
    contexts: tuple[int, ...] = (100, 1024, 2048, 4096, 8192, 32768, 131072)
    filled_bytes: int = 2**28

    @property
    def longest(self) -> int:
        """Nothing is loaded, and no cache filled that is larger than `filled_bytes` a layer."""
        return 0

    @classmethod
    def quick(cls, common: Settings) -> Self:
        """Fill small caches only."""
        return cls(**vars(common), kv=("f16", DEFAULT_KV), filled_bytes=2**24)


@dataclass(frozen=True, kw_only=True)
class LoadSettings(Settings):
    """reps: starts of each engine. peers: measure llama.cpp too."""

    reps: int = 5
    peers: bool = False

    @classmethod
    def quick(cls, common: Settings) -> Self:
        """One start."""
        return cls(**vars(common), reps=1)

    @classmethod
    def whole(cls, common: Settings) -> Self:
        """Everything there is."""
        return cls(**vars(common), peers=True)


@dataclass(frozen=True, kw_only=True)
class RooflineSettings(Settings):
    """contexts: tokens held. kv: beside f16."""

    kv: tuple[str, ...] = (DEFAULT_KV,)
    contexts: tuple[int, ...] = (4096, 16384, 32768)

    @property
    def longest(self) -> int:
        """Nothing is loaded."""
        return 0


@dataclass(frozen=True, kw_only=True)
class ClaimSettings(Settings):
    """shape: whose operations are counted. lengths: generated tokens. seconds: for measuring."""

    shape: str = "phi-2"
    lengths: tuple[int, ...] = (8, 16, 32, 64, 128, 256, 512, 1024)
    seconds: float = 240.0

    @classmethod
    def quick(cls, common: Settings) -> Self:
        """Measure what fits a quarter of a minute."""
        return cls(**vars(common), seconds=15.0)
