"""What fits in this machine's memory: one notion for the command line, the chat's list and bench.

Knows bytes, dimensions and a cache's plan; opens no model and loads nothing.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Protocol

import mlx.core as mx
import psutil

from kvcache import Backend, CacheConfig, CachePlan, EmberError, ModelShape, resolve
from kvcache.config import on_gpu
from kvcache.gpu.prefill import MOST_TRANSIENT
from models.gpu.traffic import MOST_DECODED

# What the program itself and its transient arrays take beside weights and cache.
PROGRAM_BYTES = 400_000_000
# macOS lets a GPU wire about two thirds of the memory of machines of up to 24 GB.
WIRED_SHARE = 2 / 3
# A model fits where it fits with a window of so many tokens.
LEAST_WINDOW = 2048
_STEP = 512  # tokens of the longest prompt step
_FLOAT = 4
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")
# Where a group of version 1 has no limit it states a number near 2^63.
_NO_LIMIT = 1 << 60


class Fit(Enum):
    """Whether something fits in this machine's memory."""

    FITS = "fits"
    TIGHT = "tight"
    TOO_LARGE = "too large"


class TooLargeError(EmberError):
    """What this machine's memory cannot hold; nothing was loaded."""


class Dimensions(Protocol):
    """Of a network, as far as memory depends on them."""

    @property
    def shape(self) -> ModelShape: ...
    @property
    def hidden(self) -> int: ...
    @property
    def ffn(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes. most: that one program can have here; now: that it could have at this moment."""

    most: int
    now: int


@dataclass(frozen=True, kw_only=True)
class Need:
    """Bytes that a model takes: weights, a full cache, one step of a prompt."""

    weights: int
    cache: int
    prompt: int = 0

    @property
    def total(self) -> int:
        """All of them; the program itself comes on top."""
        return self.weights + self.cache + self.prompt

    def fit(self, memory: Memory) -> Fit:
        """TOO_LARGE where it cannot fit whatever else is done."""
        if self.total > memory.most:
            return Fit.TOO_LARGE
        tight = self.total + PROGRAM_BYTES > min(memory.now, memory.most)
        return Fit.TIGHT if tight else Fit.FITS

    def fits_beside(self, held: int, memory: Memory) -> bool:
        """Whether it fits now, beside so many bytes of a model that stays."""
        return self.total + PROGRAM_BYTES + held <= min(memory.now, memory.most)

    def __str__(self) -> str:
        return (
            f"weights {_gb(self.weights)}, cache {_gb(self.cache)}, prompt step {_gb(self.prompt)}"
        )


@dataclass(frozen=True, kw_only=True)
class Admitted:
    """A cache that fits beside its model. notes: what the user should know, a line each."""

    config: CacheConfig
    notes: tuple[str, ...] = ()


def resident() -> int:
    """Bytes of this process in memory now, pages of a mapped model among them."""
    return int(psutil.Process().memory_info().rss)


def _own() -> int:
    """Bytes of this process that would be free without it.

    On Linux pages of mapped files count as available already, be they in use or not.
    """
    now = psutil.Process().memory_info()
    return int(now.rss - (now.shared if sys.platform == "linux" else 0))


def installed() -> int:
    """Bytes of memory that this machine has."""
    return int(psutil.virtual_memory().total)


def memory() -> Memory:
    """Of this machine: its own, less where a container or what a GPU may wire says so."""
    own, whole = _own(), psutil.virtual_memory()
    most, now = int(whole.total), int(whole.available) + own
    for limit, used in _limits():
        most, now = min(most, limit), min(now, limit - used + own)
    if on_gpu():
        # Metal's name for it, then CUDA's.
        told = mx.device_info()
        wired = told.get("max_recommended_working_set_size") or told.get("total_memory")
        most = int(wired) if wired else most
    return Memory(most=most, now=max(now, 0))


def cache_room(most: int, weights: int) -> int:
    """Bytes left for a cache beside the weights and the program; 0 where there are none."""
    return max(0, most - weights - PROGRAM_BYTES)


def largest_window(config: CacheConfig, shape: ModelShape, room: int) -> int | None:
    """Tokens of the longest window whose cache takes no more bytes than `room`.

    No longer than what the model was trained for. None where no window fits that is worth it.
    """
    config = replace(config, backend=Backend.REFERENCE)
    least = replace(config, max_tokens=min(LEAST_WINDOW, shape.context))
    smallest = resolve(least, shape)
    room -= smallest.metric_bytes
    if smallest.max_bytes > room:
        return None
    return resolve(replace(config, budget=room), shape).max_tokens


def need_of(config: CacheConfig, model: Dimensions, weights: int) -> Need:
    """What a model takes with a cache. Raises CacheError for a cache that cannot be."""
    # The bytes are the same for all backends; this one has nothing to be compiled first.
    plan = resolve(replace(config, backend=Backend.REFERENCE), model.shape)
    prompt = _prompt_step(model, _STEP) + (plan.layer_bytes if on_gpu() else 0)
    return Need(weights=weights, cache=plan.max_bytes + plan.metric_bytes, prompt=prompt)


def _prompt_step(model: Dimensions, tokens: int) -> int:
    """Bytes of a step: input and output of a block's parts, a few vectors of each token."""
    transient = MOST_TRANSIENT + MOST_DECODED if on_gpu() else 0
    return tokens * _FLOAT * (4 * model.hidden + 3 * model.ffn) + transient


def check_batch(
    plan: CachePlan, model: Dimensions, weights: int, prompts: Sequence[int], answer: int
) -> None:
    """Raise TooLargeError where prompts answered together cannot fit, each with its own cache.

    prompts: the tokens of each. answer: tokens of the longest answer.
    """
    caches = sum(plan.bytes_of(prompt + answer) for prompt in prompts)
    step = _prompt_step(model, len(prompts) * min(max(prompts), _STEP))
    here, need = memory(), Need(weights=weights, cache=caches, prompt=step)
    if need.fit(here) is Fit.TOO_LARGE:
        raise TooLargeError(
            f"{len(prompts)} prompts together do not fit in memory: {need}, but this machine has "
            f"{_gb(here.most)} for it; give fewer at once, or --force to try it all the same"
        )


def admit(config: CacheConfig, model: Dimensions, weights: int, *, force: bool = False) -> Admitted:
    """Whether a model and its cache may be loaded here.

    A window that nobody asked for shrinks to what fits. Raises TooLargeError, with the
    figures, for what cannot fit; `force` makes that a note.
    """
    here, need = memory(), need_of(config, model, weights)
    notes: list[str] = []
    if need.total + PROGRAM_BYTES > here.most and not force:
        shrunk = _shrunk(config, model, weights, here)
        if shrunk is not None:
            config, need = shrunk, need_of(shrunk, model, weights)
            notes.append(
                f"the window is {config.max_tokens} tokens, not {model.shape.context}: no more "
                "fit in memory beside the weights; --ctx asks for a size"
            )
    fit = need.fit(here)
    if fit is Fit.TOO_LARGE and not force:
        raise TooLargeError(
            f"this does not fit in memory: {need}, but this machine has {_gb(here.most)} for it; "
            f"take {_smaller(need, here)}, or --force to load it all the same"
        )
    if fit is not Fit.FITS:
        free = f"{_gb(here.now)} of {_gb(here.most)} are free"
        notes.append(f"memory is tight: {need}; {free}")
    return Admitted(config=config, notes=tuple(notes))


def _shrunk(
    config: CacheConfig, model: Dimensions, weights: int, here: Memory
) -> CacheConfig | None:
    """The configuration with the window that fits; None where none does, or a size was given."""
    if config.max_tokens is not None or config.budget is not None:
        return None
    least = replace(config, max_tokens=min(LEAST_WINDOW, model.shape.context))
    beside = weights + need_of(least, model, weights).prompt
    window = largest_window(config, model.shape, cache_room(here.most, beside))
    return None if window is None else replace(config, max_tokens=window)


def _smaller(need: Need, here: Memory) -> str:
    if need.weights + need.prompt > here.most:
        return "a smaller model"
    return "a smaller --ctx or --kv-budget, fewer --kv bits"


def _limits() -> Iterator[tuple[int, int]]:
    """Of the groups (containers, services) this process is in: the limit, and what is in use."""
    try:
        groups = _OWN_CGROUP.read_text().splitlines()
    except OSError:  # not Linux
        return
    for group in groups:
        _, controllers, path = group.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = _CGROUPS / controllers if controllers else _CGROUPS
        names = ("limit_in_bytes", "usage_in_bytes") if controllers else ("max", "current")
        here = root / path.lstrip("/")
        # Inside a container the path may be the host's; the root is then its own.
        for folder in (here, *here.parents):
            if folder.is_relative_to(root):
                yield from _limit(folder, *names)


def _limit(folder: Path, limit: str, usage: str) -> Iterator[tuple[int, int]]:
    try:
        most = int((folder / f"memory.{limit}").read_text())
        used = int((folder / f"memory.{usage}").read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such group, or "max"
        return
    if most < _NO_LIMIT:
        # Pages of files go where memory is needed.
        files = int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))
        yield most, max(used - files, 0)


def _gb(count: int) -> str:
    return f"{count / 1e9:,.1f} GB"
