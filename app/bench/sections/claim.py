"""`bench claim`: "a KV cache makes generation 10 to 100 times faster".

Operations are counted for a network's dimensions; generation is measured with
the loaded model, at as many tokens as the time allows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate

from app.bench.figures.formulas import generation_operations, kv_bytes, token_operations
from app.bench.figures.shapes import NETWORKS, Network, network_of
from app.bench.machine import machine
from app.bench.meter import Meter
from app.bench.sections.generate import PROMPT, Generator, Way, take
from app.bench.settings import ClaimSettings
from kvcache import Backend, CacheConfig, resolve
from kvcache.tiers.ledger import Ledger
from models import load

# Expected: one cached token, and tokens read a second.
_TOKEN_SECONDS = 0.012
_READING = 700.0
_LOADING_SECONDS = 4.0


@dataclass(frozen=True, kw_only=True)
class ClaimRow:
    """One length: tokens generated after a short prompt.

    shape: the network whose operations and bytes are counted; model: the one measured.
    *_s: seconds measured; None where the time did not allow that many tokens.
    cache_bytes, tiers_bytes: keys and values held at the end, in f16 and in two tiers.
    read_bytes: weights and f16 cache, which each token reads.
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
    return _no_cache_seconds(_likely_length(settings)) + cached + _LOADING_SECONDS


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
    expected = _no_cache_seconds(_likely_length(settings))
    with meter.step("claim: generating without a cache", expected):
        steps = generator.steps(Way.NO_CACHE)
        times = take(steps, longest, until=partial(enough, settings))
        measured.times[Way.NO_CACHE] = times
    reached = _reached(settings.lengths, len(times))
    for way in (Way.F16, Way.TIERS):
        expected = _likely_length(settings) * _TOKEN_SECONDS
        with meter.step(f"claim: generating, {way.value}", expected):
            steps = generator.steps(way)
            measured.times[way] = take(steps, reached, until=lambda _: False)


def enough(settings: ClaimSettings, times: Sequence[float]) -> bool:
    """Whether the time is over, or the next length cannot be reached in it.

    A step takes at least as long as the one before, which had one token less to compute.
    """
    spent, done = sum(times), len(times)
    ahead = [length for length in settings.lengths if length > done]
    if done in settings.lengths and ahead:
        spent += times[-1] * (min(ahead) - done)
    return spent > settings.seconds


def _likely_length(settings: ClaimSettings) -> int:
    """The longest of the lengths that the time allows without a cache."""
    allowed = (n for n in settings.lengths if _no_cache_seconds(n) <= settings.seconds)
    return max(allowed, default=0)


def _no_cache_seconds(length: int) -> float:
    """Expected: so many tokens read half of their square."""
    return length * length / 2 / _READING


def _reached(lengths: Sequence[int], steps: int) -> int:
    """The longest of the lengths that so many steps cover."""
    return max((length for length in lengths if length <= steps), default=0)


def _rows(settings: ClaimSettings, measured: _Measured) -> Iterator[ClaimRow]:
    network, loaded = counted_network(settings), network_of(settings.model)
    for length in settings.lengths:
        operations = generation_operations(network, prompt=PROMPT, tokens=length)
        f16, tiers = held_bytes(network, PROMPT + length)
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
            cache_bytes=f16,
            tiers_bytes=tiers,
            read_bytes=network.weight_bytes + f16,
            read_s=f16 / machine().read_bytes_s,
            recompute_s=(PROMPT + length) * token_operations(network) / machine().flops,
        )


def held_bytes(network: Network, tokens: int) -> tuple[int, int]:
    """Bytes of the keys and values of `tokens`, in f16 and in the default two tiers."""
    plan = resolve(CacheConfig(max_tokens=2**20, beyond_context=True), network.shape)
    tiers = 0
    for sizes, layers in plan.kinds.items():
        ledger = Ledger(sizes=sizes).appended(tokens)
        unencoded = (ledger.pinned + ledger.hot) * plan.token_bytes
        tiers += layers * (unencoded + ledger.cold // sizes.block * plan.block_bytes)
    return round(kv_bytes(network, tokens)), tiers // plan.shape.layers


def _ratio(slow: float | None, fast: float | None) -> float | None:
    return None if slow is None or fast is None else slow / fast
