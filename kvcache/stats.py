"""Figures of a cache: how many tokens each tier holds and what they cost.

Plain integers, read without evaluating an array, so that a user interface may
take them from another thread at any time.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

from kvcache.errors import CacheError
from kvcache.given import instance, refused


@dataclass(frozen=True, kw_only=True)
class CacheStats:
    """Tokens and bytes by tier. A token is in exactly one of sink, hot, cold, evicted.

    total: tokens ever appended (and not trimmed) = sink + hot + cold + evicted.
    sink: pinned tokens: the sinks, and the kept prefix that begins with them.
    sink_bytes, hot_bytes, cold_bytes: bytes of the keys and values that the tier holds now.
    key_bytes, value_bytes: of these, of all tiers.
    allocated_bytes: bytes of the buffers behind them.
    fp16_bytes: what the held tokens would take in fp16.
    sinks_turned: sinks are met at a distance inside the window, however long the
    chat; False where the model's rope is not known.
    plain: the reference attends, plain MLX: on the reference backend, or because no
    kernel takes the codecs or the head dimension; False before the first token.
    """

    total: int
    sink: int
    hot: int
    cold: int
    evicted: int
    sink_bytes: int
    hot_bytes: int
    cold_bytes: int
    allocated_bytes: int
    fp16_bytes: int
    sinks_turned: bool = True
    plain: bool = False
    key_bytes: int = 0
    value_bytes: int = 0

    @property
    def held(self) -> int:
        """Tokens of all tiers."""
        return self.total - self.evicted

    @property
    def held_bytes(self) -> int:
        """Bytes of all held tokens."""
        return self.sink_bytes + self.hot_bytes + self.cold_bytes

    @property
    def ratio(self) -> float:
        """fp16 bytes of the held tokens over their real bytes; 1.0 for an empty cache."""
        return self.fp16_bytes / self.held_bytes if self.held_bytes else 1.0

    def __str__(self) -> str:
        """In one line, as caches show themselves."""
        tiers = [f"{getattr(self, tier)} {tier}" for tier in ("sink", "hot", "cold", "evicted")]
        sizes = f"{_size(self.held_bytes)} of {_size(self.allocated_bytes)} allocated"
        return f"{self.total} tokens: {', '.join(tiers)}; {sizes}"

    def as_dict(self) -> dict[str, int | float]:
        """All fields and `ratio`, for JSON."""
        return asdict(self) | {"ratio": self.ratio}


# Of a layer: what shares of it are added from.
BYTES = (
    *("sink_bytes", "hot_bytes", "cold_bytes", "allocated_bytes", "fp16_bytes"),
    *("key_bytes", "value_bytes"),
)
_TOKENS = ("total", "sink", "hot", "cold", "evicted")


def _size(count: int) -> str:
    return f"{count / 2**20:.2f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"


def sum_layers(layers: Iterable[CacheStats]) -> CacheStats:
    """The stats of a whole model: bytes added over layers, token counts of one that holds most.

    Layers with a window hold fewer. Raises CacheError for no layer.
    """
    given: object = layers
    if not isinstance(given, Iterable):
        raise refused("layers", given, "the stats of each layer")
    every = sorted(_checked("layers", given), key=lambda layer: layer.held, reverse=True)
    turned = all(layer.sinks_turned for layer in every)
    return replace(_added(every, BYTES), sinks_turned=turned)


def sum_rows(rows: Iterable[CacheStats]) -> CacheStats:
    """The stats of several sequences together. Raises CacheError for none."""
    return _added(rows, _TOKENS + BYTES)


def _checked(name: str, stats: Iterable[object]) -> list[CacheStats]:
    return [instance(name, each, CacheStats) for each in stats]


def _added(stats: Iterable[CacheStats], names: tuple[str, ...]) -> CacheStats:
    every = list(stats)
    if not every:
        raise CacheError("got no layer or row, expected at least one")
    return replace(every[0], **{name: sum(getattr(s, name) for s in every) for name in names})
