"""What a user asks of a server, whatever the model."""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field

from app.options import LoadOptions, Think, UsageError
from kvcache import CacheConfig


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Where to listen, to whom, and how to answer where a request does not say it.

    port: 0 takes a free one. key: what clients must send; "" for none. origins: of web pages
    that may ask, beside those of this machine; "*" for all. cache: of one sequence. total: bytes
    of all caches, None for as many as `budget` takes. sampling: what flags say of it, by names
    of `Recommended`. max_tokens: of an answer; None: what the window leaves.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    key: str = ""
    origins: tuple[str, ...] = ()
    cache: CacheConfig = field(default_factory=CacheConfig)
    total: int | None = None
    load: LoadOptions = field(default_factory=LoadOptions)
    hot: int | None = None
    sampling: Mapping[str, float] = field(default_factory=dict)
    max_tokens: int | None = None
    think: Think = Think.SHOW

    def __post_init__(self) -> None:
        if not is_loopback(self.host) and not self.key:
            raise UsageError(
                f"--host {self.host} lets other machines ask: give an --api-key, or EMBER_API_KEY"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.casefold() == "localhost"
