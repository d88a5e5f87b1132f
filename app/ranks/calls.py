"""What the leader asks of the other ranks, each to be done as the leader does it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from app.engine import Request
from app.options import LoadOptions
from kvcache import CacheConfig

if TYPE_CHECKING:  # else each rank of a chat would read mlx-lm's server
    from mlx_lm.server import GenerationArguments

    from app.serve.row import Prepared


@dataclass(frozen=True, kw_only=True)
class Load:
    """Read this rank's share of a model. path: where rank 0 has the file."""

    path: Path
    config: CacheConfig
    options: LoadOptions


@dataclass(frozen=True, kw_only=True)
class LoadServed(Load):
    """The same, for a server. config: of a sequence. total: bytes of all, as the user gave them."""

    total: int | None


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


@dataclass(frozen=True, kw_only=True)
class Open:
    """Rows of a server that are computed together. total: bytes of all."""

    total: int


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request whose row begins."""

    request: "Prepared"
    args: "GenerationArguments"


@dataclass(frozen=True, kw_only=True)
class Step:
    """A token of every row. left: numbers of rows that go before, begun: those that come.

    kept: prompts that rank 0 keeps; other ranks must have come to keep as many.
    """

    left: Sequence[int]
    begun: Sequence[Asked]
    kept: int
