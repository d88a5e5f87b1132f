"""What the leader asks of the other ranks, each to be done as the leader does it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from app.engine import Request
from app.options import LoadOptions
from kvcache import CacheConfig


@dataclass(frozen=True, kw_only=True)
class Load:
    """Read this rank's share of a model. path: where rank 0 has the file."""

    path: Path
    config: CacheConfig
    options: LoadOptions


@dataclass(frozen=True, kw_only=True)
class Make:
    """An engine over the model that was loaded last, in place of the one before."""

    config: CacheConfig


@dataclass(frozen=True, kw_only=True)
class Adapt:
    """Have the engine go on under another configuration."""

    config: CacheConfig


@dataclass(frozen=True, kw_only=True)
class Keep:
    """Pin so many first tokens."""

    tokens: int


@dataclass(frozen=True, kw_only=True)
class Forget:
    """Let go of all that the cache holds."""


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Answer one prompt, or several at once."""

    requests: Sequence[Request]
    batch: bool = False
