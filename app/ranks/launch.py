"""What `mlx.launch` tells the processes that it starts: which one this is, and where rank 0 is.

Imports no MLX, so that commands which need none stay instant.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from kvcache.errors import EmberError, reason

_RANK, _HOSTS, _COORDINATOR = "MLX_RANK", "MLX_HOSTFILE", "MLX_JACCL_COORDINATOR"


@dataclass(frozen=True, kw_only=True)
class Launch:
    """rank: this process's. host: the address of rank 0."""

    rank: int
    host: str

    @property
    def leads(self) -> bool:
        """Whether this is the process that speaks to the user."""
        return self.rank == 0


def launch() -> Launch | None:
    """How this process was started as one of several; None where it is by itself.

    Raises EmberError for what cannot be understood.
    """
    rank, coordinator = os.environ.get(_RANK), os.environ.get(_COORDINATOR)
    first = coordinator or (rank and _first_host(os.environ.get(_HOSTS)))
    if not rank or not first:
        return None
    if not rank.isdecimal():
        raise EmberError(f"got {_RANK}={rank}, expected a number: start with mlx.launch")
    return Launch(rank=int(rank), host=first.rpartition(":")[0])


def _first_host(path: str | None) -> str | None:
    """The first address, with its port, of a file of each rank's; None where it names no ranks."""
    if not path:
        return None
    try:
        text = Path(path).read_text(encoding="utf-8")
        # One process by itself gets an empty file.
        return str(json.loads(text)[0][0]) if text.strip() else None
    except OSError as error:
        raise EmberError(f"cannot read {_HOSTS} {path}: {reason(error)}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise EmberError(
            f"{_HOSTS} {path} is no list of addresses: start with mlx.launch"
        ) from error
