"""One resolver: configuration + model shape -> what the cache will hold.

The command line, the log and the cache read the same `CachePlan`, so a setting
never silently does nothing. This module allocates nothing.
"""

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import prod

from kvcache.codecs import Codec, codec
from kvcache.codecs.affine import gains_by_metric
from kvcache.codecs.feedback import LayerMetric, feedback_bytes
from kvcache.codecs.rotation import check_rotatable
from kvcache.codecs.unencoded import UnencodedCodec
from kvcache.config import Backend, CacheConfig, HotDtype, on_gpu
from kvcache.errors import CacheError
from kvcache.given import instance, integer, refused
from kvcache.gpu.families import why_unread
from kvcache.gpu.prefill import MOST_TRANSIENT
from kvcache.tiers.ledger import TierSizes
from kvcache.tiers.sizing import Costs, layer_tiers


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The dimensions of a model that its cache depends on.

    context is the longest distance the model was trained for, in tokens.
    windows: of each layer, how many tokens a query of it sees, its own included; None
    sees all, as all layers do where there are none.
    """

    layers: int
    kv_heads: int
    head_dim: int
    context: int
    windows: tuple[int | None, ...] = ()

    def __post_init__(self) -> None:
        for name in ("layers", "kv_heads", "head_dim", "context"):
            object.__setattr__(self, name, integer(name, getattr(self, name), least=1))
        windows: object = self.windows
        if not isinstance(windows, list | tuple):
            raise refused("windows", windows, "a window for each layer")
        given = (None if each is None else integer("windows", each, least=1) for each in windows)
        object.__setattr__(self, "windows", tuple(given))
        if self.windows and len(self.windows) != self.layers:
            raise CacheError(f"got windows of {len(self.windows)} layers, expected {self.layers}")

    @property
    def sights(self) -> Counter[int | None]:
        """How many layers see so many tokens; None: all."""
        return Counter(self.windows or [None] * self.layers)


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """What the cache of one layer is made of.

    layer: seeds the codecs' rotations.
    backend: a resolved one.
    """

    layer: int
    sizes: TierSizes
    keys: str
    values: str
    hot_dtype: HotDtype
    backend: Backend
    turn_sinks: bool
    temperature: float
    check_finite: bool

    @classmethod
    def of(cls, config: CacheConfig, sizes: TierSizes, layer: int) -> "LayerPlan":
        """The plan of a layer under `config`. Raises CacheError for a backend that cannot run."""
        backend = config.backend.resolve()
        check = config.check_finite
        keys, values = config.codecs_of(layer)
        return cls(
            layer=layer,
            sizes=sizes,
            keys=keys,
            values=values,
            hot_dtype=config.hot_dtype,
            backend=backend,
            turn_sinks=config.turn_sinks,
            temperature=config.temperature,
            check_finite=not on_gpu() if check is None else check,
        )

    @classmethod
    def alone(cls, config: CacheConfig, layer: int) -> "LayerPlan":
        """Of a layer whose model is not known: `config` must say `max_tokens`."""
        instance("config", config, CacheConfig)
        integer("layer", layer)
        if config.max_tokens is None or config.budget is not None:
            raise CacheError(
                "a cache without a model needs max_tokens and takes no budget; "
                "use make_prompt_cache(model, config) for a budget"
            )
        if config.by_layer and layer >= len(config.by_layer):
            raise CacheError(f"got layer {layer}, expected one of {len(config.by_layer)} by_layer")
        window, pinned = config.max_tokens, config.pinned
        sizes = TierSizes.within(
            window,
            pinned=pinned,
            hot=config.hot,
            block=config.block,
            slack=config.slack or 0,
        )
        return cls.of(config, sizes, layer)

    @cached_property
    def codecs(self) -> tuple[Codec, Codec]:
        """Of the cold keys and values; made once, since every copy of a cache asks for them."""
        keys, values = (
            cold_codec(name, self.hot_dtype, self.layer) for name in (self.keys, self.values)
        )
        return keys, values

    def codecs_in(self, metric: LayerMetric | None) -> tuple[Codec, Codec]:
        """The same, where keys that gain by it are encoded in a metric of the layer's queries."""
        keys, values = self.codecs
        if metric is not None and gains_by_metric(keys):
            keys = keys.in_metric(metric)
        return keys, values

    def token_bytes(self, shape: tuple[int, int, int]) -> int:
        """Bytes of an unencoded token's keys and values of shape [B, Hkv, D]."""
        return 2 * prod(shape) * self.hot_dtype.mx.size

    def block_bytes(self, shape: tuple[int, int, int]) -> int:
        """Bytes of an encoded block of tokens of shape [B, Hkv, D]."""
        return sum(self.block_shares(shape))

    def block_shares(self, shape: tuple[int, int, int]) -> tuple[int, int]:
        """The same of its keys, and of its values."""
        batch, heads, dim = shape
        keys, values = (_bytes_of(one, self.sizes.block, dim) for one in self.codecs)
        return batch * heads * keys, batch * heads * values


@dataclass(frozen=True, kw_only=True)
class CachePlan:
    """What one sequence's cache holds, over all layers.

    sizes: the tiers of layers that see all tokens.
    layer_sizes: the tiers of each layer. One with a window has its own, as long as other
    layers hold more tokens than it sees; else it is as they are.
    token_bytes: bytes of one unencoded token's keys and values in all layers.
    layer_block_bytes: bytes of one encoded block in each layer.
    capped_from: the window that was asked for, where the model's context cut it.
    hot_capped_from: the hot tokens that were asked for, where they did not fit.
    reference_because: why attention is plain MLX's on a GPU, where nobody asked for that.
    """

    config: CacheConfig
    shape: ModelShape
    sizes: TierSizes
    layer_sizes: tuple[TierSizes, ...]
    backend: Backend
    token_bytes: int
    layer_block_bytes: tuple[int, ...]
    capped_from: int | None
    hot_capped_from: int | None
    reference_because: str | None = None

    @property
    def max_tokens(self) -> int:
        """Tokens held at most, by layers that see all of them."""
        return self.sizes.max_tokens

    @property
    def most_held(self) -> int:
        """Tokens held at most by any layer: fewer than `max_tokens` where all have windows."""
        return max(sizes.max_tokens for sizes in self.kinds)

    @cached_property
    def kinds(self) -> Counter[TierSizes]:
        """How many layers have each tiers."""
        return Counter(self.layer_sizes)

    @property
    def hot_dtype(self) -> HotDtype:
        """Precision of what is not encoded."""
        return self.config.hot_dtype

    @property
    def max_bytes(self) -> int:
        """Bytes of a full cache."""
        return sum(costs.of(sizes) for sizes, costs in self._layers)

    def bytes_of(self, tokens: int) -> int:
        """Bytes of a cache that was given so many tokens: its unencoded tiers come whole."""
        integer("tokens", tokens)
        return sum(
            n * costs.of(sizes, tokens) for (sizes, costs), n in Counter(self._layers).items()
        )

    @property
    def takes_metric(self) -> bool:
        """Whether keys are encoded by a codec that a metric of queries makes better."""
        return self._fed_layers > 0

    @property
    def _fed_layers(self) -> int:
        layers = (self.layer(at) for at, sizes in enumerate(self.layer_sizes) if sizes.slots)
        return sum(gains_by_metric(layer.codecs[0]) for layer in layers)

    @property
    def metric_bytes(self) -> int:
        """Bytes that such a metric takes, beside all others; 0 where none is of use."""
        shape = self.shape
        return self._fed_layers * feedback_bytes(shape.kv_heads, shape.head_dim)

    @property
    def prompt_bytes(self) -> int | None:
        """Bytes that a cache's part of a prompt step may take beside all this, for any window.

        Of one layer, since layers run one after another: attention, and a copy of its
        tiers, which MLX makes where a step both reads and writes them. None but for the
        GPU kernels. Blocks that are encoded by MLX operations take more.
        """
        return MOST_TRANSIENT + self.layer_bytes if self.backend is Backend.GPU else None

    @property
    def layer_bytes(self) -> int:
        """Bytes of the largest layer of a full cache."""
        return max(costs.of(sizes) for sizes, costs in set(self._layers))

    def bytes_of_kind(self, sizes: TierSizes) -> int:
        """Bytes of all full layers with these tiers."""
        instance("sizes", sizes, TierSizes)
        return sum(costs.of(each) for each, costs in self._layers if each == sizes)

    @property
    def block_bytes(self) -> int:
        """Bytes of one encoded block in all layers."""
        return sum(self.layer_block_bytes)

    @cached_property
    def _layers(self) -> list[tuple[TierSizes, Costs]]:
        token = self.token_bytes // self.shape.layers
        costs = [Costs(token=token, block=block) for block in self.layer_block_bytes]
        return list(zip(self.layer_sizes, costs, strict=True))

    @property
    def cold_bits(self) -> float:
        """Bits per element of the cold tier, all-in, mean of keys and values."""
        elements = 2 * self.shape.layers * self.shape.kv_heads * self.shape.head_dim
        return 8 * self.block_bytes / (elements * self.sizes.block)

    @property
    def kv(self) -> str:
        """The codecs, as `--kv` takes them, or what they take where layers have their own."""
        if self.config.by_layer:
            return f"{self.cold_bits:.2f} bits, by layer"
        keys, values = self.config.keys, self.config.values
        return keys if keys == values else f"{keys}/{values}"

    def layer(self, index: int) -> LayerPlan:
        """The plan of one layer. Raises CacheError for one that the model has not."""
        integer("index", index, most=self.shape.layers - 1)
        config = replace(self.config, backend=self.backend)
        return LayerPlan.of(config, self.layer_sizes[index], index)

    def on_reference(self, because: str) -> "CachePlan":
        """This plan without the GPU kernels. Raises CacheError where they were asked for."""
        if self.config.backend is Backend.GPU:
            raise CacheError(because)
        return replace(self, backend=Backend.REFERENCE, reference_because=because)


def cold_codec(name: str, hot_dtype: HotDtype, layer: int) -> Codec:
    """The codec called `name` in a layer; `f16` means: as the hot tier has it."""
    if name == "f16":
        width = 8 * hot_dtype.mx.size
        return UnencodedCodec(name=name, code_bits=width, dtype=hot_dtype.mx)
    return codec(name, seed=layer)


def resolve(config: CacheConfig, shape: ModelShape) -> CachePlan:
    """Fit `config` to a model of `shape`.

    Where no GPU kernel reads the codecs or the head dimension, the automatic
    backend is plain MLX, and the plan says why. Raises CacheError for the gpu
    backend then, when the window or the budget holds too little to work with, or
    when a codec does not take the model's head dimension.
    """
    instance("config", config, CacheConfig)
    instance("shape", shape, ModelShape)
    one_token = 2 * shape.kv_heads * shape.head_dim * config.hot_dtype.mx.size
    if config.by_layer and len(config.by_layer) != shape.layers:
        raise CacheError(f"got codecs by layer for {len(config.by_layer)}, expected {shape.layers}")
    names = [config.codecs_of(layer) for layer in range(shape.layers)]
    codecs = {name: cold_codec(name, config.hot_dtype, 0) for pair in names for name in pair}
    one_block = {
        (keys, values): shape.kv_heads
        * _pair_bytes(codecs[keys], codecs[values], config.block, shape.head_dim)
        for keys, values in names
    }
    blocks = tuple(one_block[pair] for pair in names)
    costs = [Costs(token=one_token, block=block) for block in blocks]
    windows = shape.windows or (None,) * shape.layers
    sizes, layer_sizes = layer_tiers(config, shape.context, windows, costs)
    capped = not config.beyond_context and (config.max_tokens or 0) > shape.context
    plan = CachePlan(
        config=config,
        shape=shape,
        sizes=sizes,
        layer_sizes=layer_sizes,
        backend=config.backend.resolve(),
        token_bytes=shape.layers * one_token,
        layer_block_bytes=blocks,
        capped_from=config.max_tokens if capped else None,
        hot_capped_from=config.hot if sizes.hot < config.hot else None,
    )
    if plan.backend is Backend.GPU:
        encodes = any(each.slots for each in layer_sizes)
        unread = why_unread(tuple(codecs.values()) if encodes else (), shape.head_dim)
        return plan.on_reference(unread) if unread else plan
    return plan


def _pair_bytes(keys: Codec, values: Codec, block: int, dim: int) -> int:
    """Bytes of a block's keys and values, of one KV head."""
    return _bytes_of(keys, block, dim) + _bytes_of(values, block, dim)


@lru_cache
def _bytes_of(one: Codec, block: int, dim: int) -> int:
    if one.rotation is not None:
        check_rotatable(dim)
    return sum(spec.nbytes for spec in one.shapes(block, dim).values())
