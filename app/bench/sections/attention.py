"""`bench attention`: one decode step's attention, kernel by kernel, beside the memory's bandwidth.

A step attends one query per layer, over caches of all layers of the loaded
model's shape, so that no layer is read from a processor cache that the layer before
has not emptied. Nothing else of the network runs.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from statistics import median

import mlx.core as mx

from app.bench.figures.shapes import NETWORKS, Network, network_of
from app.bench.figures.spread import Spread
from app.bench.machine import machine, times_of
from app.bench.meter import Meter
from app.bench.settings import AttentionSettings
from kvcache import Backend, CacheConfig, TwoTierKVCache, resolve
from kvcache.codecs import parse_pair
from kvcache.config import on_gpu

_CHUNK = 512
_LOADING_SECONDS = 3.0
_SECONDS_PER_TOKEN = 0.0009  # of context, of one kernel, filling included
# Of mlx-lm's quantized cache; its default is 64.
_GROUPS = (64, 32, 128)
_TRIAL_REPS = 3
_HOPELESS = 4.0  # times the best

Step = Callable[[], object]
Make = Callable[[int], tuple[Step, int]]


@dataclass(frozen=True, kw_only=True)
class AttentionRow:
    """One kernel at one context. seconds: of a step through all layers, the median.

    bytes_read: keys and values that the kernel must read at least, as it holds them.
    share: of the measured bandwidth that reading them in this time amounts to.
    setting: what others' kernels were measured with: the best of those that were tried.
    tried: seconds of a step that each took in a short trial; what was far slower than the
    best over fewer tokens is not tried again.
    """

    model: str
    kernel: str
    kv: str
    backend: str
    context: int
    seconds: float
    seconds_sd: float
    bytes_read: int
    gb_s: float
    share: float
    reps: int
    setting: str = ""
    tried: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """Something that attends.

    makes: by setting, what fills its caches and returns one step and the bytes it reads.
    """

    name: str
    kv: str
    backend: str
    makes: Mapping[str, Make]

    def tried(self, context: int) -> dict[str, float]:
        """Seconds of a step by setting, the fastest first; empty where there is no choice."""
        found: dict[str, float] = {}
        for setting, make in self.makes.items() if len(self.makes) > 1 else ():
            step, _ = make(context)
            began = time.perf_counter()
            step()
            first = time.perf_counter() - began
            # What is this slow is not measured again, here or over more tokens.
            again = not found or first < _HOPELESS * min(found.values())
            found[setting] = median(times_of(step, _TRIAL_REPS)) if again else first
        return dict(sorted(found.items(), key=lambda pair: pair[1]))

    def worth_trying(self, tried: Mapping[str, float]) -> "Kernel":
        """Without the settings that are far slower than the best."""
        most = _HOPELESS * min(tried.values(), default=0.0)
        makes = {name: make for name, make in self.makes.items() if tried.get(name, 0.0) <= most}
        return replace(self, makes=makes)


def expected_seconds(settings: AttentionSettings) -> float:
    """Of the whole section."""
    # Five of others, the quantized ones of which are tried in several settings.
    kernels = len(settings.kv) + 9
    return _LOADING_SECONDS + sum(kernels * _row_seconds(settings, n) for n in settings.contexts)


def run(settings: AttentionSettings, meter: Meter) -> Iterator[AttentionRow]:
    """A row for each context and kernel, one kernel's caches in memory at a time."""
    with meter.step("attention: bandwidth", _LOADING_SECONDS):
        bandwidth = machine().read_bytes_s
    network = NETWORKS.get(settings.shape) or network_of(settings.model)
    every = kernels(network, settings)
    for context in settings.contexts:
        for at, kernel in enumerate(every):
            label = f"attention: {kernel.name}, {kernel.kv}, {context} tokens"
            with meter.step(label, _row_seconds(settings, context)):
                tried = kernel.tried(context)
                every[at] = kernel.worth_trying(tried)
                setting = next(iter(tried or kernel.makes))
                step, bytes_read = kernel.makes[setting](context)
                spread = Spread.of(times_of(step, settings.reps))
                del step
            yield AttentionRow(
                model=network.name,
                kernel=kernel.name,
                kv=kernel.kv,
                backend=kernel.backend,
                context=context,
                seconds=spread.median,
                seconds_sd=spread.sd,
                bytes_read=bytes_read,
                gb_s=bytes_read / spread.median / 1e9,
                share=bytes_read / spread.median / bandwidth,
                reps=settings.reps,
                setting=setting,
                # The only one there is was tried by measuring it.
                tried=tried or ({setting: spread.median} if setting else {}),
            )


def kernels(network: Network, settings: AttentionSettings) -> list[Kernel]:
    """ember's over every kind of cache, and what a user has without it."""
    backend = Backend(settings.backend).resolve()
    ours = [
        Kernel(
            name="ember",
            kv=kv,
            backend=backend.value,
            makes={"": partial(_ember, network, kv, backend)},
        )
        for kv in settings.kv
    ]
    # On a CPU MLX's float16 is slower than its float32, whose bytes are twice as many.
    dtypes = (mx.float16,) if on_gpu() else (mx.float32, mx.float16)
    encoded = next((kv for kv in settings.kv if kv != "f16"), settings.kv[0])
    decoding = Kernel(
        name="decode, then attend",
        kv=encoded,
        backend=backend.value,
        makes={
            f"dtype {_name(dtype)}": partial(_decoding, network, encoded, backend, dtype)
            for dtype in dtypes
        },
    )
    return [*ours, decoding, *_without_ember(network, dtypes)]


def _without_ember(network: Network, dtypes: tuple[mx.Dtype, ...]) -> list[Kernel]:
    """MLX's fused attention, and mlx-lm's over quantized keys and values."""
    where = "gpu" if on_gpu() else "mlx-cpu"
    fused = [
        Kernel(
            name="MLX fused attention",
            kv=_name(dtype),
            backend=where,
            makes={"contiguous arrays": partial(_mlx_fused, network, dtype)},
        )
        for dtype in reversed(dtypes)
    ]
    groups = [group for group in _GROUPS if not network.head_dim % group]
    quantized = [
        Kernel(
            name="mlx-lm quantized attention",
            kv=f"q{bits}",
            backend=where,
            makes={
                f"group_size {group}, dtype {_name(dtype)}": partial(
                    _mlx_lm_quantized, network, bits, group, dtype
                )
                for dtype, group in product(dtypes, groups)
                if dtype is dtypes[0] or group == groups[0]
            },
        )
        for bits in (8, 4)
        if groups
    ]
    return [*fused, *quantized]


def _ember(network: Network, kv: str, backend: Backend, context: int) -> tuple[Step, int]:
    caches = filled(network, kv, backend, context)
    q, scale = queries(network).astype(_mlx_dtype()), network.head_dim**-0.5

    def step() -> None:
        mx.eval([cache.attend_held(q, scale=scale) for cache in caches])

    return step, sum(cache.stats().held_bytes for cache in caches)


def _decoding(
    network: Network, kv: str, backend: Backend, dtype: mx.Dtype, context: int
) -> tuple[Step, int]:
    """Each layer decoded whole, then MLX's fused attention over what came out."""
    caches = filled(network, kv, backend, context)
    q, scale = queries(network).astype(dtype), network.head_dim**-0.5

    def step() -> None:
        for cache in caches:
            keys, values = (held.astype(dtype) for held in (cache.keys(), cache.values()))
            mx.eval(mx.fast.scaled_dot_product_attention(q, keys, values, scale=scale))

    return step, sum(cache.stats().held_bytes for cache in caches)


def _mlx_fused(network: Network, dtype: mx.Dtype, context: int) -> tuple[Step, int]:
    layers = [(_tokens(network, context, layer).astype(dtype),) * 2 for layer in _layers(network)]
    # Keys and values of their own: a shared array would be read once.
    layers = [(keys, values + 0) for keys, values in layers]
    mx.eval(layers)
    q, scale = queries(network).astype(dtype), network.head_dim**-0.5

    def step() -> None:
        mx.eval([mx.fast.scaled_dot_product_attention(q, k, v, scale=scale) for k, v in layers])

    return step, sum(array.nbytes for pair in layers for array in pair)


def _mlx_lm_quantized(
    network: Network, bits: int, group: int, dtype: mx.Dtype, context: int
) -> tuple[Step, int]:
    from mlx_lm.models.base import quantized_scaled_dot_product_attention
    from mlx_lm.models.cache import QuantizedKVCache

    layers = []
    for layer in _layers(network):
        cache = QuantizedKVCache(group_size=group, bits=bits)
        tokens = _tokens(network, context, layer).astype(dtype)
        layers.append(cache.update_and_fetch(tokens, tokens))
    mx.eval(layers)
    q, scale = queries(network).astype(dtype), network.head_dim**-0.5

    def step() -> None:
        mx.eval(
            [
                # It multiplies its queries in place.
                quantized_scaled_dot_product_attention(
                    q + 0, keys, values, scale=scale, mask=None, group_size=group, bits=bits
                )
                for keys, values in layers
            ]
        )

    return step, sum(part.nbytes for pair in layers for side in pair for part in side)


def filled(network: Network, kv: str, backend: Backend, context: int) -> Sequence[TwoTierKVCache]:
    """One cache per layer, with `context` tokens."""
    keys, values = parse_pair(kv)
    config = CacheConfig(
        max_tokens=context + CacheConfig().block + CacheConfig().hot,
        keys=keys.name,
        values=values.name,
        backend=backend,
        beyond_context=True,
    )
    plan = resolve(config, network.shape)
    caches = [TwoTierKVCache(plan.layer(layer)) for layer in _layers(network)]
    for layer, cache in enumerate(caches):
        tokens = _tokens(network, context, layer)
        for start in range(0, context, _CHUNK):
            part = tokens[:, :, start : start + _CHUNK]
            cache.append(part, part)
            mx.eval(cache.pending())
    return caches


def _layers(network: Network) -> range:
    return range(network.layers)


def _tokens(network: Network, count: int, layer: int) -> mx.array:
    """[1, Hkv, count, D], the same every time."""
    shape = (1, network.kv_heads, count, network.head_dim)
    return mx.random.normal(shape, key=mx.random.key(layer))


def queries(network: Network) -> mx.array:
    """[1, Hq, 1, D]."""
    shape = (1, network.heads, 1, network.head_dim)
    q = mx.random.normal(shape, key=mx.random.key(10_007))
    mx.eval(q)
    return q


def _name(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")


def _mlx_dtype() -> mx.Dtype:
    """What a user of MLX would take on this device."""
    return mx.float16 if on_gpu() else mx.float32


def _row_seconds(settings: AttentionSettings, context: int) -> float:
    return 0.2 + context * _SECONDS_PER_TOKEN * (1 + settings.reps / 15) / 2
