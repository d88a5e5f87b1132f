"""One layer's keys and values in tiers, attended and appended to.

    pinned | cold ring of encoded blocks | hot ring | new tokens

On overflow of the hot ring its oldest block is encoded, once, into the cold
ring's next slot; when all slots are taken, the oldest block is overwritten. What is
held is `holding`'s; what a query sees, `sight`'s. Keys arrive after RoPE; no tokenizer,
no model, no file.
"""

from functools import lru_cache
from math import inf
from typing import Any

import mlx.core as mx

from kvcache.checks import check_finite_queries, check_queries, check_tokens, scored
from kvcache.errors import CacheError
from kvcache.given import array, number
from kvcache.holding import HoldingCache, like
from kvcache.reference import Mask, grouped_scores
from kvcache.sight import Sight
from kvcache.snapshot import Tokens
from kvcache.tiers.ledger import Ledger
from kvcache.turn import Rotation

# New tokens that may stay in memory beside the tiers, of all layers at a time.
_FEW = 8


class LayerCache(HoldingCache):
    """What `TwoTierKVCache` is to any caller; that adds what mlx-lm, files and kernels need."""

    def append(self, k: mx.array, v: mx.array) -> None:
        """Add L tokens: k and v are [B, Hkv, L, D].

        Raises CacheError, and leaves the cache as it was, for shapes or dtypes that
        do not fit and for numbers that are not finite in the hot dtype.
        """
        self._append(self.checked(array("k", k), array("v", v)))

    def attend_held(self, q: mx.array, *, scale: float, mask: Mask = "causal") -> mx.array:
        """Attend q [B, Hq, L, D] to the held tokens; its last row is the newest token."""
        self._settle()
        held, shape = self.ledger.total, self._shape
        if not held or shape is None:
            raise CacheError("the cache is empty: append keys and values first")
        check_queries(q := array("q", q), shape, held)
        scale, mask = scored(scale, mask, (*q.shape[:3], self.ledger.held))
        return self._attend(q, None, held - q.shape[2], scale, mask)

    def attend(
        self,
        q: mx.array,
        k: mx.array,
        v: mx.array,
        *,
        scale: float,
        mask: Mask = "causal",
        both: mx.array | None = None,
    ) -> mx.array:
        """Attend to the tiers as they are and to the new tokens, unencoded; then `append`.

        mask: an array has a column for each held token in the order of `keys()`,
        then one for each new token. both: k and v once more as one array,
        [2 * B, Hkv, L, D], of which they are views, where the caller has them so.
        """
        # Without a call where all is as networks give it: for each token and layer.
        if not q.__class__ is k.__class__ is v.__class__ is mx.array:
            q, k, v = array("q", q), array("k", k), array("v", v)
        new = self.checked(k, v, both)
        check_queries(q, like(k), k.shape[2])
        usual = mask is None or mask.__class__ is str
        if not (usual and scale.__class__ is float and -inf < scale < inf):
            shape = *q.shape[:3], self.ledger.held + k.shape[2]
            scale, mask = scored(scale, mask, shape)
        return self.attend_checked(q, new, scale=scale, mask=mask)

    def checked(self, k: mx.array, v: mx.array, both: mx.array | None = None) -> Tokens[Any]:
        """New tokens for `attend_checked`. Raises CacheError for what `append` refuses."""
        self._admit(k, v)
        tiers = self._memory
        return tiers.prepare(k, v) if both is None else tiers.prepare_joined(k, v, both)

    def _admit(self, k: mx.array, v: mx.array) -> None:
        """Be ready for new tokens: with what waits written, and what they need of a share drawn.

        Raises CacheError for what fits no cache, or not this one, such as a D that its codecs do
        not take.
        """
        if self._waiting is not None:
            self._settle()
        check_tokens(k, v, self._shape or (1 if self._share else None, None, None))
        if self._shape is None and self.full_plan.sizes.slots:
            self.plan.block_bytes(like(k))
        if self._share is not None:
            # Before queries are told what is let go.
            self._make_room(k.shape[2])

    def attend_checked(
        self, q: mx.array, new: Tokens[Any], *, scale: float, mask: Mask = "causal"
    ) -> mx.array:
        """`attend` with tokens and queries that are known to fit."""
        out = self._attend(q, new, self.ledger.total, scale, mask)
        self._append(new)
        return self._memory.after_writes(out) if q.shape[2] > _FEW else out

    def scores(self, q: mx.array, *, scale: float = 1.0) -> mx.array:
        """Scores [B, Hq, L, held] of q [B, Hq, L, D] against `keys()`, before softmax.

        As the codecs estimate them, float32, without a mask; pinned tokens are
        met with the turned queries of the newest position.
        """
        keys, pinned = self.keys().astype(mx.float32), self.ledger.pinned
        q = array("q", q)
        # Any number of queries: each is of the newest position.
        check_queries(q, like(keys), max(1, q.shape[-2] if q.ndim == 4 else 1))
        q = q.astype(mx.float32) * (number("scale", scale) / self.plan.temperature)
        by = [-self.ledger.evicted] * q.shape[2]
        turned = q if self.rotation is None else self.rotation(q, by)
        parts = (turned, keys[:, :, :pinned]), (q, keys[:, :, pinned:])
        return mx.concatenate([grouped_scores(*part) for part in parts], axis=-1)

    # -- inside --

    def _attend(
        self, q: mx.array, new: Tokens[Any] | None, position: int, scale: float, mask: Mask
    ) -> mx.array:
        if self.plan.check_finite:
            check_finite_queries(q)
        count = 0 if new is None else new.length
        sight = self._sight(self.ledger, position, q.shape[2], new=count, mask=mask)
        return self._memory.attend(q, self.ledger, new, sight, scale / self.plan.temperature)

    def _sight(self, ledger: Ledger, position: int, queries: int, *, new: int, mask: Mask) -> Sight:
        if (mask is None and queries == 1) or (isinstance(mask, str) and mask == "causal"):
            return _causal_sight(ledger, position, queries, new, self.rotation)
        return ledger.sight(position, queries, new=new, mask=mask, rotation=self.rotation)


@lru_cache(maxsize=16)
def _causal_sight(
    ledger: Ledger, position: int, queries: int, new: int, rotation: Rotation | None
) -> Sight:
    return ledger.sight(position, queries, new=new, rotation=rotation)
