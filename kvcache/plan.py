"""One resolver: configuration + model shape -> what the cache will hold.

The command line, the log and the cache read the same `CachePlan`, so a setting
never silently does nothing. This module allocates nothing.
"""

from dataclasses import dataclass

from kvcache.config import Backend, CacheConfig, HotDtype
from kvcache.errors import CacheError


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The dimensions of a model that its cache depends on.

    context is the longest distance the model was trained for, in tokens.
    """

    layers: int
    kv_heads: int
    head_dim: int
    context: int


@dataclass(frozen=True, kw_only=True)
class CachePlan:
    """What one sequence's cache holds, over all layers.

    max_tokens: the window.
    token_bytes: bytes of one token's keys and values in all layers.
    capped_from: the window that was asked for, where the model's context cut it.
    """

    shape: ModelShape
    max_tokens: int
    hot_dtype: HotDtype
    backend: Backend
    token_bytes: int
    capped_from: int | None

    @property
    def max_bytes(self) -> int:
        """Bytes of a full cache."""
        return self.max_tokens * self.token_bytes


def resolve(config: CacheConfig, shape: ModelShape) -> CachePlan:
    """Fit `config` to a model of `shape`.

    Raises CacheError when the budget does not hold a single token.
    """
    itemsize = config.hot_dtype.mx.size
    token_bytes = 2 * shape.layers * shape.kv_heads * shape.head_dim * itemsize
    wanted = config.max_tokens or shape.context
    if config.budget is not None:
        fits = config.budget // token_bytes
        if fits < 1:
            raise CacheError(
                f"a budget of {config.budget} bytes holds no token: this model needs "
                f"{token_bytes} bytes per token; give a larger --kv-budget"
            )
        wanted = min(fits, config.max_tokens or fits)
    window = wanted if config.beyond_context else min(wanted, shape.context)
    asked = config.max_tokens is not None and window < wanted
    return CachePlan(
        shape=shape,
        max_tokens=window,
        hot_dtype=config.hot_dtype,
        backend=config.backend.resolve(),
        token_bytes=token_bytes,
        capped_from=wanted if asked else None,
    )
