"""How many sequences the bytes of a server hold at once; the others wait.

Knows plans and bytes; no model, no cache and no request.
"""

from dataclasses import dataclass, replace

from app.memory import (
    PROGRAM_BYTES,
    Admitted,
    Dimensions,
    Fit,
    Need,
    TooLargeError,
    admit,
    cache_room,
    memory,
    need_of,
)
from kvcache import Backend, CacheConfig, CachePlan, resolve

# What is taken without --kv-budget, where memory has it: so many full windows.
DEFAULT_SEQUENCES = 8


@dataclass(frozen=True, kw_only=True)
class Budget:
    """total: bytes of all caches. plan: of one sequence."""

    total: int
    plan: CachePlan

    @property
    def sequences(self) -> int:
        """How many are computed at once, each with a window of its own."""
        return self.total // self.plan.max_bytes

    def bytes_of(self, tokens: int) -> int:
        """Bytes of a sequence that was given so many tokens."""
        return self.plan.bytes_of(min(tokens, self.plan.max_tokens))


def admit_server(
    config: CacheConfig, total: int | None, model: Dimensions, weights: int, *, force: bool
) -> tuple[Admitted, int]:
    """The cache of one sequence, and bytes for all of them, beside a model's weights.

    config: of a sequence, its window the model's context where it says none. total: what the
    user gives to all; None takes `DEFAULT_SEQUENCES` windows, or as many as fit. Raises
    TooLargeError, with the figures, where not one fits; for memory, `force` makes it a note.
    """
    if total is None:
        return _by_memory(config, model, weights, force=force)
    if config.max_tokens is None:
        within = resolve(replace(config, budget=total, backend=Backend.REFERENCE), model.shape)
        config = replace(config, max_tokens=within.max_tokens)
    one = bytes_of_one(config, model)
    if one > total:
        raise TooLargeError(
            f"--kv-budget has {_mib(total)}, but one sequence of --ctx {config.max_tokens} takes "
            f"{_mib(one)}: raise it, or take a smaller --ctx or fewer --kv bits"
        )
    need = replace(need_of(config, model, weights), cache=total)
    return Admitted(config=config, notes=_notes(need, force=force)), total


def _by_memory(
    config: CacheConfig, model: Dimensions, weights: int, *, force: bool
) -> tuple[Admitted, int]:
    admitted = admit(config, model, weights, force=force)
    one = bytes_of_one(admitted.config, model)
    beside = weights + need_of(admitted.config, model, weights).prompt
    room = cache_room(min(memory().most, memory().now), beside)
    return admitted, one * max(1, min(DEFAULT_SEQUENCES, room // one))


def _notes(need: Need, *, force: bool) -> tuple[str, ...]:
    """What is to be said of what all takes. Raises TooLargeError."""
    here = memory()
    fit = need.fit(here)
    if fit is Fit.FITS:
        return ()
    if fit is Fit.TOO_LARGE and not force:
        raise TooLargeError(
            f"this does not fit in memory: {need}, but this machine has {here.most / 1e9:,.1f} GB "
            "for it; take a smaller --kv-budget, or --force to load it all the same"
        )
    return (f"memory is tight: {need}, the program {PROGRAM_BYTES / 1e9:,.1f} GB",)


def bytes_of_one(config: CacheConfig, model: Dimensions) -> int:
    """Bytes of one sequence that fills its window."""
    return resolve(replace(config, backend=Backend.REFERENCE), model.shape).max_bytes


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
