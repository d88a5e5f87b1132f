"""The metric that a model's keys are encoded by: counted once of a model, and kept.

The model reads a short text that comes with ember, and the second moments of its queries are
counted (`kvcache.key_metric`). They depend on the model far more than on what it reads, so
they are made once for a file and stay as they are: what is encoded never depends on a chat.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import mlx.core as mx
import numpy as np

from kvcache import (
    Backend,
    CacheConfig,
    CacheError,
    EmberError,
    KeyMetric,
    TwoTierKVCache,
    make_prompt_cache,
)
from kvcache.cache_folder import cache_folder
from kvcache.config import on_gpu
from kvcache.errors import reason
from kvcache.key_metric import anywhere
from kvcache.reference import Mask
from models.loader import LoadedModel
from models.network.llama import Model

OnProgress = Callable[[int, int], None]

TEXT = Path(__file__).parent / "calibration.txt"
TOKENS = 512
# Set to 0: nothing is counted or looked for, and keys are rounded plainly.
VARIABLE = "EMBER_CALIBRATE"
_STAGED, _STALE_SECONDS = "keeping-", 3600
# Weights of a model that reads the text in a few seconds on two cores of a CPU.
_FEW_BYTES = 500_000_000
_STEP = 64


def key_metric(loaded: LoadedModel, *, progress: OnProgress | None = None) -> KeyMetric | None:
    """What is kept for a model, or is counted now where that takes no more than a few seconds.

    On a GPU it always is. None else, until `count` and `keep` have run once, and where
    EMBER_CALIBRATE is 0. What cannot be kept is used all the same, and counted again by the
    next load. progress: called with (tokens read, all tokens); what it raises ends the work.
    """
    found = kept(loaded) if is_wanted() else None
    soon = is_wanted() and (on_gpu() or loaded.weight_bytes <= _FEW_BYTES)
    if loaded.group is not None:
        # To count is to compute, which all ranks do or none.
        own = mx.array([found is not None, soon], mx.int32)
        least = np.asarray(mx.distributed.all_min(own, group=loaded.group))
        found, soon = found if least[0] else None, bool(least[1])
    if found is None and soon:
        found = count(loaded, progress=progress)
        with suppress(EmberError):
            keep(found, loaded)
            found = kept(loaded) or found  # which need not be held in memory
    return found


def is_wanted() -> bool:
    """Whether the user has not switched it off."""
    return os.environ.get(VARIABLE) != "0"


def kept(loaded: LoadedModel) -> KeyMetric | None:
    """The metric that was made of this file; None where there is none, or a damaged one."""
    shape = loaded.model.shape
    try:
        found = KeyMetric.load(path_of(loaded))
        found.check(shape.layers, shape.kv_heads, shape.head_dim)
    except CacheError:
        return None
    return found


def count(loaded: LoadedModel, *, progress: OnProgress | None = None) -> KeyMetric:
    """A model's metric, whatever is kept."""
    ids = loaded.tokenizer.encode(TEXT.read_text(encoding="utf-8"))[:TOKENS]
    return count_queries(loaded.model, ids, progress=progress)


def keep(metric: KeyMetric, loaded: LoadedModel) -> Path:
    """Keep it for the loads to come; returns where. Raises EmberError where it cannot be."""
    path = path_of(loaded)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        # In one step, so that who reads it finds a whole file or none.
        with tempfile.TemporaryDirectory(prefix=_STAGED, dir=path.parent) as stage:
            made = Path(stage) / path.name
            metric.save(made)
            made.replace(path)
    except OSError as error:
        raise EmberError(
            f"cannot write to {path.parent} ({reason(error)}): set EMBER_CACHE to a folder that "
            "can be written"
        ) from error
    return path


def _sweep(parent: Path) -> None:
    """Remove what a killed program left, once nobody can still be at work on it."""
    for left in parent.glob(f"{_STAGED}*"):
        if time.time() - left.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


def path_of(loaded: LoadedModel) -> Path:
    """Where the metric of a model's file is kept; queries that turn otherwise have their own, and
    so have the heads of each of several ranks."""
    *short, _ = loaded.model.contexts
    turned = "-short" if any(loaded.model.context <= each for each in short) else ""
    group = loaded.group
    part = f"-rank{group.rank()}of{group.size()}" if group is not None else ""
    return folder() / f"{loaded.identity}{turned}{part}.safetensors"


def folder() -> Path:
    """Where metrics are kept, each in a file that begins with the identity of its model's."""
    return cache_folder() / "metrics"


def count_queries(
    model: Model, ids: Sequence[int], *, progress: OnProgress | None = None
) -> KeyMetric:
    """The metric of a model that reads these tokens, with nothing encoded."""
    # Plain MLX on a GPU, whose kernels may not have been tried yet.
    backend = Backend.REFERENCE if on_gpu() else Backend.AUTO
    length = max(len(ids), _STEP)
    config = CacheConfig(
        keys="f16",
        values="f16",
        max_tokens=2 * length,
        hot=length,
        backend=backend,
        beyond_context=True,
    )
    caches = [_CountingCache(cache) for cache in make_prompt_cache(model, config)]
    for start in range(0, len(ids), _STEP):
        mx.eval(model.hidden(mx.array([ids[start : start + _STEP]]), caches))
        mx.eval([cache.moments for cache in caches])
        if progress is not None:
            progress(min(start + _STEP, len(ids)), len(ids))
    found = [
        anywhere(cache.moments / len(ids), rotation)
        for cache, rotation in zip(caches, model.rotations, strict=True)
    ]
    return KeyMetric.of(found)


class _CountingCache:
    """A cache that adds up q q' of the queries that attend to it, over each KV head's.

    Not a TwoTierKVCache itself, so that kernels of all layers do not attend past it.
    """

    def __init__(self, cache: TwoTierKVCache) -> None:
        self._cache = cache
        self.moments = mx.zeros((1, 1, 1))

    @property
    def offset(self) -> int:
        """Position of the next token."""
        return self._cache.offset

    def attend(
        self, q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: Mask = "causal"
    ) -> mx.array:
        """The cache's own."""
        heads, dim = k.shape[1], k.shape[3]
        rows = q[0].astype(mx.float32).reshape(heads, -1, dim)
        self.moments = self.moments + rows.swapaxes(1, 2) @ rows
        return self._cache.attend(q, k, v, scale=scale, mask=mask)
