"""What a caller asks of a cache, before any model is known.

This module does not know a model's shape: `plan.resolve` turns a configuration
and a shape into ring sizes and bytes.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from enum import Enum
from functools import cached_property, partial
from typing import Any, Self

import mlx.core as mx

from kvcache.codecs.names import codec, parted
from kvcache.errors import CacheError, NativeUnavailableError, quoted
from kvcache.given import flag, instance, integer, member, number, refused
from kvcache.native.library import library


class HotDtype(Enum):
    """Precision of keys and values that are not encoded."""

    F16 = "f16"
    BF16 = "bf16"
    F32 = "f32"

    @classmethod
    def of(cls, name: str, value: object) -> "HotDtype":
        """What the argument `name` means: a precision, its word, or MLX's dtype of it."""
        found = next(
            (each for each in cls if isinstance(value, mx.Dtype) and each.mx == value), None
        )
        return found or member(name, value, cls)

    @cached_property
    def mx(self) -> mx.Dtype:
        """The MLX dtype."""
        return {HotDtype.F16: mx.float16, HotDtype.BF16: mx.bfloat16, HotDtype.F32: mx.float32}[
            self
        ]


class Backend(Enum):
    """Which implementation computes attention and, in ember's network, products.

    REFERENCE is plain MLX on any device, GPU is the kernels for Metal and CUDA,
    CPU is those in C++. AUTO takes GPU where MLX's default device is one, else
    CPU where the kernels can be compiled, else REFERENCE.
    """

    AUTO = "auto"
    REFERENCE = "reference"
    CPU = "cpu"
    GPU = "gpu"

    @classmethod
    def of(cls, value: object) -> "Backend":
        """What the argument `backend` means: a backend or its word."""
        return member("backend", value, cls)

    def resolve(self) -> "Backend":
        """The backend that will really run on MLX's default device.

        Raises CacheError when GPU or CPU is asked for and cannot run here.
        """
        if self is Backend.AUTO:
            return Backend.GPU if on_gpu() else _best_on_cpu()
        if self is Backend.CPU:
            library()
        if self is Backend.GPU and not on_gpu():
            raise CacheError(
                "the gpu backend needs a Metal or CUDA device, but MLX runs on the CPU here; "
                "use `backend` auto or reference"
            )
        return self


def on_gpu() -> bool:
    """Whether MLX's default device is a GPU."""
    return mx.default_device().type == mx.DeviceType.gpu


def _best_on_cpu() -> Backend:
    try:
        library()
    except NativeUnavailableError:
        return Backend.REFERENCE
    return Backend.CPU


# Positions are 32-bit numbers in RoPE and in the kernels; bytes are 64-bit ones.
MOST_TOKENS = 2**31 - 1
MOST_BYTES = 2**63 - 1

# Keys' and values' codecs where nobody says others: docs/library/codecs.md has why.
DEFAULT_KV = "hkivi4/turbo4u"
_KEYS, _VALUES = parted(DEFAULT_KV)

_UNITS = {"": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9}


def parse_bytes(text: str) -> int:
    """Turn "64MiB", "1.5 GiB", "500MB" or "1048576" into bytes.

    Raises CacheError for anything else, zero included.
    """
    if not isinstance(text, str):
        raise refused("text", text, "a number of bytes such as '64MiB'")
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    size = float(match[1]) * _UNITS[match[2]] if match and match[2] in _UNITS else 0.0
    if size < 1:
        raise CacheError(
            f"got size {quoted(text)}, expected a number of bytes such as 64MiB or 1.5GiB"
        )
    if size > MOST_BYTES:
        raise CacheError(f"got a size of {size:.3g} bytes, expected less than {MOST_BYTES:.3g}")
    return int(size)


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """A cache policy.

    max_tokens: tokens held at most; None means as many as the model's context.
    budget: bytes held at most over all layers; None means no bound but max_tokens.
    hot: newest tokens kept unencoded.
    sinks: first tokens kept unencoded and never let go.
    keep: the same for a longer prefix, such as a system prompt.
    block: tokens encoded together.
    slack: newest tokens that `trim` takes back as if they had not come, whatever was encoded or
    let go since; it takes memory for them. None: 16 in networks of mlx-lm's, whose drafts and
    server trim, and none elsewhere.
    keys, values: codecs of the cold tier (`kvcache.codec`).
    by_layer: "KEYS/VALUES" of each layer in place of them; empty where all have the same.
    hot_dtype: precision of keys and values that are not encoded.
    backend: which attention implementation runs.
    beyond_context: allow a window longer than the model was trained for.
    turn_sinks: meet the sinks at a distance inside the window (see `turn`).
    temperature: attention scores are divided by it.
    check_finite: refuse NaN and infinity in appended tokens and in queries; None checks
    wherever that costs no wait for a GPU.

    Words stand for what is written in words: budget="64MiB", hot_dtype="f32", backend="cpu",
    keys="kvarn4/q3" for keys and values. Raises CacheError, which names the argument.
    """

    max_tokens: int | None = None
    budget: int | None = None
    hot: int = 256
    sinks: int = 4
    keep: int = 0
    block: int = 64
    slack: int | None = None
    keys: str = _KEYS
    values: str = _VALUES
    by_layer: tuple[str, ...] = ()
    hot_dtype: HotDtype = HotDtype.F16
    backend: Backend = Backend.AUTO
    beyond_context: bool = False
    turn_sinks: bool = True
    temperature: float = 1.0
    check_finite: bool | None = None

    def __post_init__(self) -> None:
        for each in fields(self):
            # As it is read later, whatever way it was written.
            object.__setattr__(self, each.name, _meant(each.name, getattr(self, each.name)))
        keys, values = self.keys, self.values
        if "/" in keys:
            if values != type(self).values:
                raise refused("keys", keys, f"one codec where values={values!r} is given too")
            keys, values = parted(keys)
            object.__setattr__(self, "keys", keys)
            object.__setattr__(self, "values", values)
        for name in self.codecs:
            codec(name)

    @classmethod
    def for_budget(cls, budget: str | int, **policy: Any) -> Self:
        """A configuration that holds as many tokens as fit in `budget` ("64MiB" or bytes).

        policy: any other field.
        """
        if budget is None:
            raise refused("budget", budget, "a number of bytes such as '64MiB'")
        size = parse_bytes(budget) if isinstance(budget, str) else budget
        try:
            return cls(budget=size, **policy)
        except TypeError as error:
            raise CacheError(f"this is no cache configuration: {error}") from error

    @property
    def pinned(self) -> int:
        """First tokens kept unencoded and never let go: sinks, and the prefix that is kept."""
        return max(self.sinks, self.keep)

    @property
    def codecs(self) -> frozenset[str]:
        """Those that any layer has, by name."""
        pairs = map(parted, self.by_layer) if self.by_layer else [(self.keys, self.values)]
        return frozenset(name for pair in pairs for name in pair)

    def codecs_of(self, layer: int) -> tuple[str, str]:
        """The codecs of a layer's keys and values. Raises CacheError for no layer."""
        integer("layer", layer, most=len(self.by_layer) - 1 if self.by_layer else None)
        return parted(self.by_layer[layer]) if self.by_layer else (self.keys, self.values)

    def as_dict(self) -> dict[str, Any]:
        """All fields as JSON has them; `from_dict` undoes it."""
        return asdict(self) | {"hot_dtype": self.hot_dtype.value, "backend": self.backend.value}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """The configuration that `as_dict` gave; absent fields take their defaults.

        Raises CacheError for an unknown field or value.
        """
        given: object = fields
        if not isinstance(given, Mapping):
            raise refused("fields", given, "the fields of a cache configuration")
        try:
            enums = {
                "hot_dtype": HotDtype(fields.get("hot_dtype", HotDtype.F16)),
                "backend": Backend(fields.get("backend", Backend.AUTO)),
            }
            layers = fields.get("by_layer", ())
            by_layer = tuple(layers) if isinstance(layers, list) else layers
            return cls(**{**fields, **enums, "by_layer": by_layer})
        except (TypeError, ValueError) as error:
            raise CacheError(f"this is not a cache configuration: {error}") from error


def _meant(name: str, value: object) -> object:
    """The value of a field of `CacheConfig` that is meant. Raises CacheError for what is none."""
    if value is None and name in ("max_tokens", "budget", "slack", "check_finite"):
        return None
    if name in _COUNTS:
        least, most = _COUNTS[name]
        return integer(name, value, least=least, most=most)
    if name in ("beyond_context", "turn_sinks", "check_finite"):
        return flag(name, value)
    return _READ[name](value)


def _bytes(value: object) -> int:
    if isinstance(value, str):
        return parse_bytes(value)
    return integer("budget", value, least=1, most=MOST_BYTES)


def _codecs_by_layer(value: object) -> tuple[str, ...]:
    names = tuple(value) if isinstance(value, list) else value
    if not isinstance(names, tuple) or not all(isinstance(each, str) for each in names):
        raise refused("by_layer", value, "a tuple of KEYS/VALUES, one a layer")
    return names


# The least and the most.
_COUNTS = {
    "max_tokens": (1, MOST_TOKENS),
    "hot": (0, MOST_TOKENS),
    "sinks": (0, MOST_TOKENS),
    "keep": (0, MOST_TOKENS),
    "block": (1, MOST_TOKENS),
    "slack": (0, MOST_TOKENS),
}
_READ: dict[str, Callable[[object], object]] = {
    "budget": _bytes,
    "keys": partial(instance, "keys", kind=str),
    "values": partial(instance, "values", kind=str),
    "by_layer": _codecs_by_layer,
    "hot_dtype": partial(HotDtype.of, "hot_dtype"),
    "backend": Backend.of,
    "temperature": partial(number, "temperature", above=0),
}
