"""`bench roofline`: the most tokens a second that memory bandwidth allows. Nothing is measured.

A token moves all weights that it meets, and the keys and values of all held tokens,
through each layer's attention: for ember by the formula of its GPU kernels, which
their tests hold against counted bytes, for an f16 cache 2 bytes a number.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from app.bench.figures.chips import CHIPS, Chip
from app.bench.figures.formulas import cache_room, kv_bytes
from app.bench.figures.shapes import LLAMA_2_7B, TINYLLAMA, Network
from app.bench.meter import Meter
from app.bench.settings import RooflineSettings
from kvcache import CacheConfig
from kvcache.codecs import parse_pair
from kvcache.gpu.shape import CallShape
from kvcache.gpu.traffic import Held, traffic

NETWORKS = (TINYLLAMA, LLAMA_2_7B)
F16 = "f16"
_TABLE_BITS = 5  # of Q4_K as ember stores it (docs/tensor-types.md)


@dataclass(frozen=True, kw_only=True)
class RooflineRow:
    """One chip's ceiling for one model and cache.

    weight_bytes, cache_bytes, other_bytes: that a token moves; other: queries,
    outputs and partial results of attention.
    tokens_s: bandwidth over all of them. over_f16: times the f16 cache's.
    fits: whether two thirds of the chip's largest memory hold weights and cache.
    """

    model: str
    chip: str
    gb_s: float
    context: int
    kv: str
    weight_bytes: int
    cache_bytes: int
    other_bytes: int
    tokens_s: float
    over_f16: float
    fits: bool


@dataclass(frozen=True, kw_only=True)
class Moved:
    """Bytes of one token."""

    weights: int
    cache: int
    other: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.cache + self.other


def expected_seconds(_settings: RooflineSettings) -> float:
    """Of the whole section."""
    return 0.1


def run(settings: RooflineSettings, meter: Meter) -> Iterator[RooflineRow]:
    """A row for each model, context, chip and kind of cache, f16 first."""
    with meter.step("roofline", expected_seconds(settings)):
        for network in NETWORKS:
            for context in settings.contexts:
                f16 = f16_moved(network, context)
                kinds = {F16: f16} | {kv: moved(network, kv, context) for kv in settings.kv}
                for chip in CHIPS:
                    for kv, bytes_of in kinds.items():
                        yield _row(network, chip, context, kv, bytes_of, f16)


def moved(network: Network, kv: str, context: int) -> Moved:
    """By ember's kernels over `context` tokens, the new one among them."""
    keys, values = parse_pair(kv)
    shape = CallShape(
        batch=1,
        kv_heads=network.kv_heads,
        group=network.heads // network.kv_heads,
        new=1,
        dim=network.head_dim,
    )
    layer = traffic(shape, held(context), keys=keys, values=values)
    return Moved(
        weights=weights_read(network),
        cache=network.layers * layer.cache,
        other=network.layers * (layer.total - layer.cache),
    )


def f16_moved(network: Network, context: int) -> Moved:
    """With all tokens in f16: keys and values, queries and outputs once."""
    return Moved(
        weights=weights_read(network),
        cache=int(kv_bytes(network, context)),
        other=network.layers * 2 * 2 * network.heads * network.head_dim,
    )


def held(context: int) -> Held:
    """The tiers of a cache with its default sizes and so many tokens, none let go."""
    config = CacheConfig()
    pinned = min(config.sinks, context)
    blocks = max(0, context - pinned - config.hot) // config.block
    hot = context - pinned - blocks * config.block
    return Held(pinned=pinned, hot=hot, blocks=blocks, block=config.block)


def weights_read(network: Network) -> int:
    """All weights but the embedding's table, of which a token reads one row."""
    return network.weight_bytes - network.vocabulary * network.hidden * _TABLE_BITS // 8


def _row(
    network: Network, chip: Chip, context: int, kv: str, bytes_of: Moved, f16: Moved
) -> RooflineRow:
    room = cache_room(network, chip.memory_gib * 2**30)
    return RooflineRow(
        model=network.name,
        chip=chip.name,
        gb_s=chip.gb_s,
        context=context,
        kv=kv,
        weight_bytes=bytes_of.weights,
        cache_bytes=bytes_of.cache,
        other_bytes=bytes_of.other,
        tokens_s=chip.gb_s * 1e9 / bytes_of.total,
        over_f16=f16.total / bytes_of.total,
        fits=bytes_of.cache <= room,
    )
