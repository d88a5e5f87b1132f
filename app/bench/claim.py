"""`bench claim`: "a KV cache makes generation 10 to 100 times faster".

Operations are counted for a network's dimensions; generation is measured with
the loaded model, at as many tokens as the time allows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import sqrt

from app.bench.formulas import generation_operations, kv_bytes, token_operations
from app.bench.generate import PROMPT, Generator, Way, take
from app.bench.machine import machine
from app.bench.meter import Meter
from app.bench.settings import ClaimSettings
from app.bench.shapes import NETWORKS, Network, network_of
from kvcache import Backend, CacheConfig, resolve
from kvcache.ledger import Ledger
from models import load

# Expected: one cached token, and tokens read a second.
_TOKEN_SECONDS = 0.012
_READING = 500.0
_LOADING_SECONDS = 4.0


@dataclass(frozen=True, kw_only=True)
class ClaimRow:
    """One length: tokens generated after a short prompt.

    shape: the network whose operations and bytes are counted; model: the one measured.
    *_s: seconds measured; None where the time did not allow that many tokens.
    cache_bytes, tiers_bytes: keys and values held at the end, in fp16 and in two tiers.
    read_bytes: weights and fp16 cache, which each token reads.
    read_s: to read that cache once; recompute_s: to compute what it holds anew; both at
    the machine's measured rates.
    """

    shape: str
    length: int
    ops_no_cache: int
    ops_cache: int
    ops_ratio: float
    model: str
    no_cache_s: float | None
    cache_s: float | None
    tiers_s: float | None
    ratio: float | None
    tiers_ratio: float | None
    cache_bytes: int
    tiers_bytes: int
    read_bytes: int
    read_s: float
    recompute_s: float


@dataclass
class _Measured:
    """Seconds of each step, as far as it went."""

    times: dict[Way, list[float]] = field(default_factory=dict)

    def seconds(self, way: Way, length: int) -> float | None:
        """Of the first `length` tokens."""
        sums = list(accumulate(self.times.get(way, [])))
        return sums[length - 1] if length <= len(sums) else None


def expected_seconds(settings: ClaimSettings) -> float:
    """Of the whole section."""
    cached = 2 * _likely_length(settings) * _TOKEN_SECONDS
    return settings.seconds + cached + _LOADING_SECONDS


def run(settings: ClaimSettings, meter: Meter) -> Iterator[ClaimRow]:
    """A row for each length, after measuring; an interrupt leaves what was measured."""
    measured = _Measured()
    try:
        with meter.step("claim: bandwidth and FLOP rate", _LOADING_SECONDS):
            machine()
        _measure(settings, meter, measured)
    except KeyboardInterrupt:
        yield from _rows(settings, measured)
        raise
    yield from _rows(settings, measured)


def counted_network(settings: ClaimSettings) -> Network:
    """Whose operations are counted."""
    found = NETWORKS.get(settings.shape)
    return network_of(settings.model) if found is None else found


def _measure(settings: ClaimSettings, meter: Meter, measured: _Measured) -> None:
    longest = max(settings.lengths)
    backend = Backend(settings.backend).resolve()
    # Whole blocks, so that nothing is let go.
    window = PROMPT + longest + 4 * CacheConfig().block + CacheConfig().hot
    model = load(settings.model, backend=backend).model
    generator = Generator(model=model, backend=backend, window=window)
    with meter.step("claim: generating without a cache", settings.seconds):
        steps = generator.steps(Way.NO_CACHE)
        times = take(steps, longest, until=lambda spent: spent > settings.seconds)
        measured.times[Way.NO_CACHE] = times
    reached = _reached(settings.lengths, len(times))
    for way in (Way.PLAIN, Way.TIERS):
        expected = _likely_length(settings) * _TOKEN_SECONDS
        with meter.step(f"claim: generating, {way.value}", expected):
            steps = generator.steps(way)
            measured.times[way] = take(steps, reached, until=lambda _: False)


def _likely_length(settings: ClaimSettings) -> float:
    """Tokens that the time allows without a cache: n of them read n * n / 2."""
    allowed = sqrt(max(0.0, 2 * _READING * settings.seconds))
    return min(float(max(settings.lengths)), allowed)


def _reached(lengths: Sequence[int], steps: int) -> int:
    """The longest of the lengths that so many steps cover."""
    return max((length for length in lengths if length <= steps), default=0)


def _rows(settings: ClaimSettings, measured: _Measured) -> Iterator[ClaimRow]:
    network, loaded = counted_network(settings), network_of(settings.model)
    for length in settings.lengths:
        operations = generation_operations(network, prompt=PROMPT, tokens=length)
        plain, tiers = held_bytes(network, PROMPT + length)
        slow, fast, tiered = (measured.seconds(way, length) for way in Way)
        yield ClaimRow(
            shape=network.name,
            length=length,
            ops_no_cache=operations.no_cache,
            ops_cache=operations.cache,
            ops_ratio=operations.ratio,
            model=loaded.name,
            no_cache_s=slow,
            cache_s=fast,
            tiers_s=tiered,
            ratio=_ratio(slow, fast),
            tiers_ratio=_ratio(slow, tiered),
            cache_bytes=plain,
            tiers_bytes=tiers,
            read_bytes=network.weight_bytes + plain,
            read_s=plain / machine().read_bytes_s,
            recompute_s=(PROMPT + length) * token_operations(network) / machine().flops,
        )


def held_bytes(network: Network, tokens: int) -> tuple[int, int]:
    """Bytes of the keys and values of `tokens`, in fp16 and in the default two tiers."""
    plan = resolve(CacheConfig(max_tokens=2**20, beyond_context=True), network.shape)
    ledger = Ledger(sizes=plan.sizes).appended(tokens)
    unencoded = (ledger.sink + ledger.hot) * plan.token_bytes
    cold = ledger.cold // plan.sizes.block * plan.block_bytes
    return round(kv_bytes(network, tokens)), unencoded + cold


def _ratio(slow: float | None, fast: float | None) -> float | None:
    return None if slow is None or fast is None else slow / fast
