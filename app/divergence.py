"""How much a cache changes what a model says: teacher-forced, beside a reference cache.

Tokens are fed in decode mode, in chunks no longer than a block, so that every
token read from the cold tier was encoded on the way, as in a chat.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from app.sampling import require_finite
from kvcache import TwoTierKVCache
from models.network.llama import Model

Floats = npt.NDArray[np.float64]
Logits = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """One number for each scored position.

    nll: negative log-likelihood of the next token under the cache, nats.
    reference_nll: the same under the reference.
    kl: divergence of the next-token distribution from the reference's, nats.
    agrees: whether both give the same most likely token.
    """

    nll: Floats
    reference_nll: Floats
    kl: Floats
    agrees: npt.NDArray[np.bool_]

    @property
    def perplexity(self) -> float:
        """Of the text under the cache."""
        return float(np.exp(self.nll.mean()))

    def as_dict(self) -> dict[str, float | int]:
        """The figures of the JSON contract."""
        return {
            "ppl": self.perplexity,
            "reference_ppl": float(np.exp(self.reference_nll.mean())),
            "kld_mean": float(self.kl.mean()),
            "kld_median": float(np.median(self.kl)),
            "kld_p999": float(np.quantile(self.kl, 0.999)),
            "top1": float(self.agrees.mean()),
            "tokens": len(self.kl),
        }


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A stretch of positions that were fed, as a model under some cache sees them.

    log_probabilities: [L, vocabulary] of the token after each position.
    targets: [L], the tokens that really follow.
    """

    log_probabilities: Logits
    targets: npt.NDArray[np.int64]


def read(
    model: Model,
    cache: Sequence[TwoTierKVCache],
    ids: Sequence[int],
    *,
    chunk: int,
    skip: int = 0,
) -> Iterator[Reading]:
    """Feed `ids` through a cache; yields the scored positions of each chunk as they come.

    chunk: tokens at a time. skip: first positions that are fed but not scored.
    The last id is only a target.
    """
    for start in range(0, len(ids) - 1, chunk):
        stop = min(start + chunk, len(ids) - 1)
        chunk_ids = mx.array([ids[start:stop]])
        if stop <= skip:
            mx.eval(model.hidden(chunk_ids, cache), [layer.pending() for layer in cache])
            continue
        first = max(0, skip - start)
        found = _log_probabilities(model, cache, chunk_ids)
        targets = np.array(ids[start + 1 + first : stop + 1])
        yield Reading(log_probabilities=found[first:], targets=targets)


def diverge(
    model: Model,
    cache: Sequence[TwoTierKVCache],
    reference: Sequence[TwoTierKVCache],
    ids: Sequence[int],
    *,
    chunk: int,
    skip: int = 0,
) -> Iterator[Divergence]:
    """`read` through both caches, and `compare`."""
    readings = (read(model, one, ids, chunk=chunk, skip=skip) for one in (cache, reference))
    for ours, theirs in zip(*readings, strict=True):
        yield compare(ours, theirs)


def compare(ours: Reading, reference: Reading) -> Divergence:
    """How far one reading is from another of the same positions."""
    mine, theirs = ours.log_probabilities, reference.log_probabilities
    rows = np.arange(len(ours.targets))
    kl = np.einsum("ij,ij->i", np.exp(theirs), theirs - mine, dtype=np.float64)
    return Divergence(
        nll=-mine[rows, ours.targets].astype(np.float64),
        reference_nll=-theirs[rows, ours.targets].astype(np.float64),
        kl=kl,
        agrees=mine.argmax(axis=-1) == theirs.argmax(axis=-1),
    )


def join(parts: Sequence[Divergence]) -> Divergence:
    """All positions of several chunks."""
    return Divergence(
        nll=np.concatenate([part.nll for part in parts]),
        reference_nll=np.concatenate([part.reference_nll for part in parts]),
        kl=np.concatenate([part.kl for part in parts]),
        agrees=np.concatenate([part.agrees for part in parts]),
    )


def _log_probabilities(model: Model, caches: Sequence[TwoTierKVCache], ids: mx.array) -> Logits:
    """[L, vocabulary]."""
    logits: Logits = np.asarray(model(ids, caches)[0].astype(mx.float32))
    mx.eval([cache.pending() for cache in caches])
    peaks = logits.max(axis=-1, keepdims=True)
    require_finite(peaks)
    below: Logits = logits - peaks
    below -= np.log(np.exp(below).sum(axis=-1, keepdims=True, dtype=np.float64))
    return below
