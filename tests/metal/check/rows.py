"""What the check gives: a row class a section, flat, as the JSON has them."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CorrectnessRow:
    """One case. error: the largest difference from float64; most: what is allowed.

    problem: what MLX said where it refused; then there is no error.
    """

    case: str
    error: float | None
    most: float
    right: bool
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class BandwidthRow:
    """Bytes a second of memory that MLX itself reaches. what: `copy` or `read`."""

    what: str
    bytes: int
    seconds: float
    gb_s: float


@dataclass(frozen=True, kw_only=True)
class KernelRow:
    """One launch of one layer's attention, by itself.

    bytes: all of its inputs and outputs once. share: of the measured bandwidth.
    """

    shape: str
    tokens: int
    kernel: str
    seconds: float
    bytes: int
    gb_s: float
    share: float


@dataclass(frozen=True, kw_only=True)
class AttentionRow:
    """One layer's attention: all launches of it, beside MLX's fused attention over float16.

    new: tokens that attend together. threadgroups: how many a launch should have; 0: as many
    as the decoder takes by itself.
    cache_bytes: keys and values that ours reads. share: of the measured bandwidth.
    times: how many times faster than MLX's.
    """

    shape: str
    tokens: int
    new: int
    threadgroups: int
    seconds: float
    f16_seconds: float
    times: float
    cache_bytes: int
    share: float


@dataclass(frozen=True, kw_only=True)
class ProductRow:
    """A matrix of blocks times some rows of x.

    mlx_seconds: of MLX's product of as many weights in 4-bit groups of 64; times: how many times
    faster than it. bytes: of the blocks. share: of the measured bandwidth.
    """

    matrix: str
    type: str
    tokens: int
    seconds: float
    mlx_seconds: float
    times: float
    bytes: int
    share: float


@dataclass(frozen=True, kw_only=True)
class EncodingRow:
    """One layer's block on its way from the hot ring to the cold one: written, read, encoded.

    token_seconds: of a layer, for each token that goes this way.
    """

    shape: str
    kv: str
    block: int
    seconds: float
    token_seconds: float


@dataclass(frozen=True, kw_only=True)
class TokensRow:
    """Generated tokens a second of a real model, of one engine and cache, at one depth.

    setting: of mlx-lm, the best of those tried; of ember, a window that is full.
    times: of mlx-lm's KVCache at this depth.
    """

    model: str
    engine: str
    kv: str
    depth: int
    setting: str
    tokens_s: float
    kv_bytes: int
    times: float


Row = (
    CorrectnessRow | BandwidthRow | KernelRow | ProductRow | AttentionRow | EncodingRow | TokensRow
)
