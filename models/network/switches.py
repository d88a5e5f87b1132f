"""What one attention network does that another does not.

The default of each switch is what Llama does. Knows no key of a file and no tensor.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from models.errors import GGUFError

# Far beyond any model, yet harmless, as in `config`.
_LEAST, _MOST = 1e-6, 1e6
_LONGEST = 1 << 24
_GREATEST_BASE = 1e18
_SCALES = ("attention_scale", "embedding_scale", "residual_scale", "logit_divisor", "logit_cap")


class NormOf(Enum):
    """What a norm of queries and keys, before they turn, is taken over."""

    HEAD = "each head"
    ROW = "all heads"


class Activation(Enum):
    """Of the feed-forward part's gate. Source of GELU: arXiv 1606.08415, its tanh form."""

    SILU = "SiLU"
    GELU_TANH = "GELU"


@dataclass(frozen=True, kw_only=True)
class Switches:
    """Where a network differs from Llama.

    half_split: rope turns dimension i with i + dims / 2 instead of 2i with 2i + 1.
    unturned: layers without rope.
    window, windowed: layers whose queries see the last `window` tokens only, themselves
    included. window_rope_base: base of their rope, which is not scaled; None: turned as
    the other layers are.
    query_key_norm: over what queries and keys are normed before rope.
    pre_norms, post_norms: norms of what goes into attention and feed-forward, and of
    what comes out.
    fused: gate and up are one matrix in the file.
    attention_scale: of scores; None: head dimension ** -0.5.
    embedding_scale, residual_scale: factors of the embeddings, and of what each layer's
    two halves add. logit_divisor: of the logits. logit_cap: what a tanh keeps them below.
    temperature_scale, temperature_span: queries at position p are multiplied by
    1 + scale * log(1 + p // span).
    """

    half_split: bool = False
    unturned: frozenset[int] = frozenset()
    window: int | None = None
    windowed: frozenset[int] = frozenset()
    window_rope_base: float | None = None
    query_key_norm: NormOf | None = None
    pre_norms: bool = True
    post_norms: bool = False
    fused: bool = False
    activation: Activation = Activation.SILU
    attention_scale: float | None = None
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_divisor: float = 1.0
    logit_cap: float | None = None
    temperature_scale: float = 0.0
    temperature_span: int = 1

    def __post_init__(self) -> None:
        for name in _SCALES:
            value = getattr(self, name)
            if value is not None and not _LEAST <= value <= _MOST:
                raise GGUFError(f"got {name}={value}, expected {_LEAST:g} to {_MOST:g}")
        if not 0 <= self.temperature_scale <= _MOST or self.temperature_span < 1:
            raise GGUFError(
                f"got temperature_scale={self.temperature_scale} over {self.temperature_span} "
                f"tokens, expected 0 to {_MOST:g} over at least one"
            )
        base = self.window_rope_base
        if base is not None and not 1 <= base <= _GREATEST_BASE:
            raise GGUFError(f"got window_rope_base={base:g}, expected 1 to {_GREATEST_BASE:g}")
        if self.windowed and not 1 <= (self.window or 0) <= _LONGEST:
            raise GGUFError(
                f"got layers that see {self.window} tokens, expected 1 to {_LONGEST} tokens"
            )

    def window_of(self, layer: int) -> int | None:
        """Tokens that a query of the layer sees, itself included; None: all."""
        return self.window if layer in self.windowed else None

    def named(self) -> tuple[str, ...]:
        """In words, those that differ from Llama."""
        return tuple(self._words())

    def _words(self) -> Iterator[str]:
        if self.half_split:
            yield "half-split rope"
        if self.unturned:
            yield f"{len(self.unturned)} layers without rope"
        if self.windowed:
            yield f"{len(self.windowed)} layers see {self.window} tokens"
        if self.window_rope_base is not None:
            yield f"their rope's base {self.window_rope_base:g}"
        if self.query_key_norm is not None:
            yield f"queries and keys normed over {self.query_key_norm.value}"
        if self.post_norms:
            yield "norms before and after" if self.pre_norms else "norms after instead of before"
        if self.fused:
            yield "gate and up fused"
        if self.activation is not Activation.SILU:
            yield self.activation.value
        yield from self._scales()

    def _scales(self) -> Iterator[str]:
        if self.attention_scale is not None:
            yield f"attention scale {self.attention_scale:g}"
        if self.embedding_scale != 1:
            yield f"embedding scale {self.embedding_scale:g}"
        if self.residual_scale != 1:
            yield f"residual scale {self.residual_scale:g}"
        if self.logit_divisor != 1:
            yield f"logits divided by {self.logit_divisor:g}"
        if self.logit_cap is not None:
            yield f"logits capped at {self.logit_cap:g}"
        if self.temperature_scale:
            yield f"attention temperature {self.temperature_scale:g}"
