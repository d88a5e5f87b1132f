"""Cache sizes that others have published, and which assumptions give them.

A figure is right when the model's own dimensions give it in f16, the usual form.
Otherwise every plausible mistake is tried, and those that give the figure are named.
"""

from dataclasses import dataclass, replace

from app.bench.figures.formulas import kv_bytes
from app.bench.figures.shapes import LLAMA_2_7B, TINYLLAMA, Network

# Published figures are rounded to two digits.
_TOLERANCE = 0.03
_WIDTHS = {"f32": 32.0, "f16": 16.0, "8-bit codes": 8.0, "4-bit codes without scales": 4.0}


@dataclass(frozen=True, kw_only=True)
class Published:
    """Somebody's figure: bytes of the cache of `tokens` tokens."""

    network: Network
    tokens: int
    stated_bytes: float


FIGURES = (
    Published(network=TINYLLAMA, tokens=100, stated_bytes=4.5e6),
    Published(network=LLAMA_2_7B, tokens=100, stated_bytes=13e6),
)


def verdict(figure: Published) -> str:
    """Whether the figure is right, what is, and what would give it."""
    network, tokens = figure.network, figure.tokens
    right = kv_bytes(network, tokens)
    said = f"{network.name}, {tokens} tokens: {figure.stated_bytes / 1e6:g} MB"
    formula = (
        f"2 x {network.layers} layers x {network.kv_heads} KV heads x {network.head_dim} x "
        f"2 bytes x {tokens} = {right / 1e6:.2f} MB in f16"
    )
    if _near(right, figure.stated_bytes):
        return f"{said} is right: {formula}."
    reasons = explanations(figure)
    because = f"; it is what {' or '.join(reasons)} would take" if reasons else ""
    return f"{said} is not the f16 cache, which is {formula}{because}."


def explanations(figure: Published) -> list[str]:
    """The assumptions under which the figure comes out: number widths, then other KV heads."""
    own = [
        name
        for name, bits in _WIDTHS.items()
        if _near(kv_bytes(figure.network, figure.tokens, bits=bits), figure.stated_bytes)
    ]
    fewer = [heads for heads in (1, 2, 4, 8, 16) if heads < figure.network.kv_heads]
    shared = [
        f"{heads} KV heads in {name}"
        for heads in fewer
        for name, bits in _WIDTHS.items()
        if name in ("f32", "f16")
        and _near(
            kv_bytes(replace(figure.network, kv_heads=heads), figure.tokens, bits=bits),
            figure.stated_bytes,
        )
    ]
    return own + shared


def _near(a: float, b: float) -> bool:
    return abs(a - b) <= _TOLERANCE * b
