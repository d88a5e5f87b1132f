"""Which rope each layer of a network turns by, as its configuration and its tensors say."""

import mlx.core as mx
import numpy as np

from models.errors import GGUFError
from models.network.config import NetworkConfig
from models.network.rope import Rope
from models.network.weights import Weights


class Ropes:
    """The ropes of a network: of all its layers, or of two kinds."""

    def __init__(self, config: NetworkConfig, weights: Weights) -> None:
        """One set of frequency factors, or two of which the context chooses (LongRoPE)."""
        every = _factors("rope_freqs.weight", weights)
        names = ("rope_factors_short.weight", "rope_factors_long.weight")
        self._original, self._context = config.original_context, config.shape.context
        self._two = every is None and any(name in weights for name in names)
        self._short, self._long = (
            Rope(
                config.rope_dims,
                base=config.rope_base,
                factor=config.rope_factor,
                frequency_factors=_factors(name, weights) if every is None else every,
                yarn=config.yarn,
                magnitude=config.rope_magnitude,
                half_split=config.switches.half_split,
            )
            for name in names
        )
        self._unscaled: Rope | None = None
        self._switches = config.switches
        if config.switches.window_rope_base is not None:
            self._unscaled = Rope(
                config.rope_dims,
                base=config.switches.window_rope_base,
                half_split=config.switches.half_split,
            )

    @property
    def contexts(self) -> tuple[int, ...]:
        """The longest context of each set of factors, the network's own last."""
        whole = self._context
        return (self._original, whole) if self._two and self._original < whole else (whole,)

    def of(self, layer: int, context: int) -> Rope | None:
        """Of a layer in a context of so many tokens; the same object for all that turn alike."""
        if layer in self._switches.unturned:
            return None
        if layer in self._switches.windowed and self._unscaled is not None:
            return self._unscaled
        return self._long if context > self._original else self._short


def _factors(name: str, weights: Weights) -> mx.array | None:
    if name not in weights:
        return None
    factors = weights.vector(name, mx.float32)
    if not (least := float(np.asarray(factors).min())) > 0:
        raise GGUFError(f"tensor {name!r} holds {least}, expected positive numbers")
    return factors
