"""`bench roofline`: the most tokens a second that memory bandwidth allows. Nothing is measured.

A token moves all weights that it meets, and the keys and values of all held tokens,
through each layer's attention: for ember by the formula of its GPU kernels, which
their tests hold against counted bytes, for an f16 cache 2 bytes a number. For chips
whose GPU is known it also gives a token's time, as a range (`figures/gpu_time.py`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from app.bench.figures.chips import CHIPS, Chip
from app.bench.figures.formulas import cache_room, kv_bytes
from app.bench.figures.gpu_time import FAST, SLOW, Work, counted
from app.bench.figures.shapes import LLAMA_2_7B, TINYLLAMA, Network
from app.bench.meter import Meter
from app.bench.settings import RooflineSettings
from kvcache import CacheConfig
from kvcache.codecs import parse_pair
from kvcache.config import DEFAULT_KV
from kvcache.gpu.shape import CallShape
from kvcache.gpu.traffic import Held, Traffic, block_bytes, traffic

NETWORKS = (TINYLLAMA, LLAMA_2_7B)
F16 = "f16"
_MOST_OF = "Q4_K"  # the type of most weights, and that with most instructions for a byte
_TABLE_BITS = 4.5  # of Q4_K


@dataclass(frozen=True, kw_only=True)
class RooflineRow:
    """One chip's ceiling for one model and cache.

    weight_bytes, cache_bytes, other_bytes: that a token moves; other: queries,
    outputs and partial results of attention.
    tokens_s: bandwidth over all of them. over_f16: times the f16 cache's.
    fits: whether two thirds of the chip's largest memory hold weights and cache.
    fast_ms, slow_ms: a token's time, with instructions and launches, as the range of what
    is assumed gives it; before and after the window lets go. None where the GPU is not known,
    or a kernel's instructions. encoding_ms: of slow_ms.
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
    fast_ms: float | None = None
    slow_ms: float | None = None
    encoding_ms: float | None = None


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
                for chip in CHIPS:
                    for kv in (F16, *settings.kv):
                        yield _timed(_row(network, chip, context, kv), network, chip)


def moved(network: Network, kv: str, context: int, chip: Chip) -> Moved:
    """By ember's kernels over `context` tokens, the new one among them."""
    layer = _layer(network, kv, context, chip)
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


def work(network: Network, kv: str, context: int, chip: Chip, *, letting_go: bool) -> Work | None:
    """Of one token by ember's kernels, or in fp16 by mlx-lm's network.

    letting_go: whether the window does. None for codecs whose instructions are not counted.
    """
    costs, layers = counted(), network.layers
    if kv == F16:
        bytes_of = f16_moved(network, context)
        return Work(
            weights=bytes_of.weights,
            other=bytes_of.cache + bytes_of.other,
            launches=layers * costs.launches.mlx_lm,
        )
    if kv != DEFAULT_KV:
        return None
    layer, launches = _layer(network, kv, context, chip), costs.launches
    block = CacheConfig().block
    instructions = costs.instructions[network.name]
    unencoded = layer.pinned + layer.hot
    # A threadgroup leaves a partial result for each query head of its KV head.
    groups = layer.scratch / (2 * 4 * (network.head_dim + 2)) / (network.heads / network.kv_heads)
    weights = weights_read(network)
    encoding = layers * network.kv_heads * encoding_bytes(network, kv, block) / block
    return Work(
        weights=weights,
        weight_instructions=costs.products[_MOST_OF] * weights,
        encoded=layers * layer.cold,
        unencoded=layers * unencoded,
        other=layers * (layer.total - layer.cache),
        encoding=encoding,
        encoded_instructions=layers
        * (instructions.encoded * layer.cold + instructions.threadgroup * groups),
        unencoded_instructions=layers * instructions.unencoded * unencoded,
        launches=layers * (launches.letting_go if letting_go else launches.token),
        encoding_instructions=instructions.encoding * encoding,
        encoding_launches=layers * launches.block / block,
        encoding_cores=network.kv_heads * instructions.encoding_threadgroups,
    )


def encoding_bytes(network: Network, kv: str, block: int) -> int:
    """Of one block of one KV head: read as float16 and written encoded."""
    read = 2 * 2 * network.head_dim * block
    return read + block_bytes(*parse_pair(kv), block, network.head_dim)


def _layer(network: Network, kv: str, context: int, chip: Chip) -> Traffic:
    keys, values = parse_pair(kv)
    shape = CallShape(
        batch=1,
        kv_heads=network.kv_heads,
        group=network.heads // network.kv_heads,
        new=1,
        dim=network.head_dim,
    )
    return traffic(shape, held(context), keys=keys, values=values, threadgroups=chip.threadgroups)


def held(context: int) -> Held:
    """The tiers of a cache with its default sizes and so many tokens, none let go."""
    config = CacheConfig()
    pinned = min(config.sinks, context)
    blocks = max(0, context - pinned - config.hot) // config.block
    hot = context - pinned - blocks * config.block
    return Held(pinned=pinned, hot=hot, blocks=blocks, block=config.block)


def weights_read(network: Network) -> int:
    """All weights but the embedding's table, of which a token reads one row."""
    return network.weight_bytes - int(network.vocabulary * network.hidden * _TABLE_BITS) // 8


def _row(network: Network, chip: Chip, context: int, kv: str) -> RooflineRow:
    room, f16 = cache_room(network, chip.memory_gib * 2**30), f16_moved(network, context)
    bytes_of = f16 if kv == F16 else moved(network, kv, context, chip)
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


def _timed(row: RooflineRow, network: Network, chip: Chip) -> RooflineRow:
    """With a token's time, where what it takes is known."""
    before, after = (
        work(network, row.kv, row.context, chip, letting_go=letting_go)
        for letting_go in (False, True)
    )
    if not chip.gpu_cores or before is None or after is None:
        return row
    return replace(
        row,
        fast_ms=1e3 * before.seconds(chip, FAST),
        slow_ms=1e3 * after.seconds(chip, SLOW),
        encoding_ms=1e3 * after.encoding_seconds(chip, SLOW),
    )
