"""A layer's cache as mlx-lm's networks use it: they append, and attend to what comes back.

What comes back is decoded. `kvcache.mlx_lm.install` has their attention ask the cache itself
instead; then it need not be, but for networks that look at it in another way.
"""

from collections.abc import Iterator, Sequence
from enum import Enum
from functools import lru_cache

import mlx.core as mx

from kvcache.checks import check_tokens
from kvcache.codecs.feedback import LayerMetric
from kvcache.decoded_window import DecodedWindow, moved
from kvcache.errors import CacheError
from kvcache.given import array, integer
from kvcache.layer_cache import LayerCache, Stages, Waiting, appended, like
from kvcache.reference import Mask
from kvcache.sight import Sight
from kvcache.snapshot import Snapshot, Tokens, joined
from kvcache.tiers.cpu import CpuTiers
from kvcache.tiers.ledger import Ledger
from kvcache.tiers.plan import LayerPlan
from kvcache.turn import Rotation


class FetchedKeys(mx.array):
    """Keys that `update_and_fetch` returned, by which attention knows whose they are.

    cache: whose. fetched_values: that came with them. is_decoded: whether both are numbers;
    else they are NaN, for attention that does not look at them.
    """

    cache: "FetchingCache"
    fetched_values: mx.array
    is_decoded: bool

    @classmethod
    def of(
        cls, tokens: Tokens[mx.array], cache: "FetchingCache", *, is_decoded: bool
    ) -> Tokens[mx.array]:
        """The same tokens, the keys marked."""
        keys = cls(tokens.keys)
        keys.cache, keys.fetched_values, keys.is_decoded = cache, tokens.values, is_decoded
        return Tokens(keys, tokens.values)

    def are_of(self, cache: object, values: mx.array) -> bool:
        """Whether they and these values are what a cache returned."""
        return self.cache is cache and self.fetched_values is values


class Looks(Enum):
    """Whether a network computes with fetched keys and values, where attention is ours."""

    UNKNOWN = 0
    NEVER = 1
    SOMETIMES = 2


class FetchingCache(LayerCache):
    """`LayerCache` as mlx-lm's networks use it.

    keeps_snapshot: whether `update_and_fetch` leaves what `attend_fetched` needs.
    most_decoded: bytes that a layer may keep decoded from token to token, beside its tiers,
    for who calls `update_and_fetch` and no more. 0: the window is decoded for each token, as
    that of a cache of a shared budget is.
    """

    keeps_snapshot = False
    most_decoded = 2**24

    def __init__(
        self,
        plan: LayerPlan,
        *,
        rotation: Rotation | None = None,
        metric: LayerMetric | None = None,
    ) -> None:
        super().__init__(plan, rotation=rotation, metric=metric)
        self._fetched: Sequence[tuple[Ledger, Snapshot]] = ()
        self._looks = Looks.UNKNOWN

    def update_and_fetch(self, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
        """Append; returns the tokens that `attend` would see, [B, Hkv, held + L, D].

        Pinned keys come turned the other way, for models that attend with one
        query only. As many tokens as a draft has come as if one by one: where a block leaves
        the hot ring amid them, what they see follows once more, as it is then.
        """
        k, v = array("k", k), array("v", v)
        self._settle()
        check_tokens(k, v, self._shape or (1 if self._share else None, None, None))
        if self._shape is None or self._share is not None:
            self._foresee(k)
        stages = self._stages(self.ledger, k.shape[2])
        if self.keeps_snapshot and isinstance(self._memory, CpuTiers):
            if len(stages) == 1 or self._looks is Looks.NEVER:
                return self._wait(k, v, stages)
        elif not self.keeps_snapshot and len(stages) == 1:
            return self._in_window(k, v)
        new, fetched, met = self._memory.prepare(k, v), [], []
        for at, (ledger, count) in _placed(stages):
            some = new.cut(at, at + count)
            fetched.append((ledger, self._memory.snapshot(ledger, some)))
            met.append(self._met(*Tokens(k, v).cut(at, at + count)))
            self._append(some)
        self._fetched = fetched if self.keeps_snapshot else ()
        tokens = joined(met)
        return FetchedKeys.of(tokens, self, is_decoded=True) if self.keeps_snapshot else tokens

    def attend_fetched(self, q: mx.array, *, scale: float, mask: Mask) -> mx.array | None:
        """Attend to what the last `update_and_fetch` returned, without decoding it whole.

        Once for each fetch; None where there is none, or several runs of tokens have a mask of
        a caller's own.
        """
        scale /= self.plan.temperature
        if self._waiting is not None:
            return self._attend_waiting(q, self._waiting, scale, mask)
        fetched, self._fetched = self._fetched, ()
        stages = tuple((ledger, held.new_count) for ledger, held in fetched)
        if len(stages) > 1 and mask is not _mask_of_stages(stages, None):
            return None
        found = []
        for (at, (ledger, count)), (_, held) in zip(_placed(stages), fetched, strict=True):
            some, its = (q, mask) if len(stages) == 1 else (q[:, :, at : at + count], "causal")
            sight = self._fetched_sight(ledger, some.shape[2], count, its)
            found.append(self._memory.attend_snapshot(some, held, sight, scale))
        return _side_by_side(found) if found else None

    def look_at(self, keys: FetchedKeys) -> None:
        """A network computes with fetched keys, though attention is ours: they stay decoded.

        Raises CacheError for those that are not, which only `attend_fetched` can follow.
        """
        self._looks = Looks.SOMETIMES
        if not keys.is_decoded:
            raise CacheError(
                "this network computes with its cache's keys as it did not before: make new "
                "caches, and call uninstall() first"
            )

    def make_mask(
        self, length: int, return_array: bool = False, window_size: int | None = None
    ) -> Mask:
        """The mask of `length` tokens about to be appended.

        window_size: of a layer that sees no more tokens; nothing is hidden for it where the
        plan has seen to that.
        """
        # Of a share that has room, they let nothing go.
        self._make_room(length := integer("length", length, least=1))
        ledger, sizes = self.ledger, self.plan.sizes
        if window_size is not None:
            window_size = integer("window_size", window_size, least=1)
            if (sizes.window or sizes.max_tokens) <= window_size:
                window_size = None
        if len(stages := self._stages(ledger, length)) > 1:
            return _mask_of_stages(stages, window_size)
        sight = self._sight(ledger, ledger.total, length, new=length, mask="causal")
        if sight.is_whole and not return_array and window_size is None:
            return None if length == 1 else "causal"
        return sight.full(window_size)

    @property
    def nbytes(self) -> int:
        """Bytes of the allocated memory, and of the window that is kept decoded."""
        return super().nbytes + (0 if self._window is None else self._window.nbytes)

    # -- inside --

    def _stages(self, ledger: Ledger, length: int) -> Stages:
        """New tokens in runs that meet the same blocks; more than a draft has are one run."""
        if length <= 1 or length > self.plan.sizes.slack + 1:
            return ((ledger, length),)
        return _stages(ledger, length)

    def _wait(self, k: mx.array, v: mx.array, stages: Stages) -> Tokens[mx.array]:
        """`update_and_fetch` for kernels, which attend to the memory as it is before it changes.

        So new tokens are written once they have, or when anything else is asked of the cache.
        """
        is_decoded = self._looks is not Looks.NEVER
        columns = sum(ledger.held + count for ledger, count in stages)
        met = self._met(k, v) if is_decoded else _unseen(k, v, columns)
        after = appended(*stages[-1])
        self._waiting = Waiting(stages, after, k, v)
        self.ledger, self._shape, self._window = after, like(k), None
        return FetchedKeys.of(met, self, is_decoded=is_decoded)

    def _attend_waiting(self, q: mx.array, waiting: Waiting, scale: float, mask: Mask) -> mx.array:
        # All in one go: each wait for MLX takes its time.
        mx.eval(q, waiting.keys, waiting.values)
        asked, found = self._asked(q, waiting.stages, mask), []
        self._waiting = None
        memory, new = self._memory, self._prepared(waiting)
        for (at, (ledger, count)), (some, sight) in zip(
            _placed(waiting.stages), asked, strict=True
        ):
            tokens = new.cut(at, at + count)
            found.append(memory.attend(some, ledger, tokens, sight, scale))
            memory.append(ledger, appended(ledger, count), tokens)
        if self._looks is Looks.UNKNOWN:
            self._looks = Looks.NEVER
        return _side_by_side(found)

    def _asked(self, q: mx.array, stages: Stages, mask: Mask) -> list[tuple[mx.array, Sight]]:
        """The queries of each run, and what they see. Raises CacheError for another's mask."""
        asked, seen = [], 0
        for at, (ledger, count) in _placed(stages):
            some, its, columns = q, mask, ledger.held + count
            if len(stages) > 1:
                some = q[:, :, at : at + count]
                if isinstance(mask, mx.array):
                    # A run sees none of the columns of others.
                    its = mask[..., at : at + count, seen : seen + columns]
            asked.append((some, self._fetched_sight(ledger, some.shape[2], count, its)))
            seen += columns
        return asked

    def _fetched_sight(self, ledger: Ledger, queries: int, new: int, mask: Mask) -> Sight:
        """What queries see under the mask that a network was given, or made of it."""
        rule = self._sight(ledger, ledger.total, queries, new=new, mask="causal")
        # Kernels take no array, but one that says no more than the rule.
        if mask is None or (isinstance(mask, mx.array) and not self._is_rule(mask, rule)):
            return self._sight(ledger, ledger.total, queries, new=new, mask=mask)
        return rule

    def _is_rule(self, mask: mx.array, rule: Sight) -> bool:
        """Whether a mask is the one that `make_mask` gave, or on the CPU, where it is known, says
        the same."""
        whole = rule.whole
        if mask is whole or not isinstance(self._memory, CpuTiers):
            return mask is whole
        alike = mask.dtype == mx.bool_ and mask.size == whole.size
        return alike and bool(mx.array_equal(mask.reshape(whole.shape), whole))

    def _met(self, k: mx.array, v: mx.array) -> Tokens[mx.array]:
        """All tokens as new ones meet them, and those, in the dtypes that these have."""
        held, new = self._held_as_met(k, v), self._rounded(k, v)
        return new if held is None else joined([held, new])

    def _in_window(self, k: mx.array, v: mx.array) -> Tokens[mx.array]:
        """`update_and_fetch` by a window, which is kept where it will be of use."""
        new, before, window = self._memory.prepare(k, v), self.ledger, self._window
        after, rounded = appended(before, new.length), self._rounded(k, v)
        most = 0 if self._share else self.most_decoded
        stays = not moved(before, after)
        if window is not None and window.goes_on(before, k, v):
            tokens = window.append(*rounded, after)
        elif (held := self._held_as_met(k, v)) is None:
            tokens, window = rounded, None
        elif stays and held.keys.nbytes + held.values.nbytes < most:
            window = DecodedWindow.of(before, held)
            tokens = window.append(*rounded, after)
        else:
            tokens, window = joined([held, rounded]), None
        self._append(new)
        if window is not None and stays and window.nbytes <= most:
            self._window = window
        return tokens

    def _rounded(self, k: mx.array, v: mx.array) -> Tokens[mx.array]:
        """As hot tokens are, in the dtypes that they come in."""
        hot = self.plan.hot_dtype.mx
        return Tokens(*(x.astype(hot).astype(x.dtype) for x in (k, v)))

    def _held_as_met(self, k: mx.array, v: mx.array) -> Tokens[mx.array] | None:
        """The held tokens, decoded, in the dtypes of new ones; pinned keys turned ahead."""
        ledger = self.ledger
        if not ledger.held:
            return None
        keys, values = self._tiers.decoded(ledger, self.plan.hot_dtype.mx)
        if ledger.evicted and self.rotation is not None:
            pinned = ledger.pinned
            ahead = self.rotation(keys[:, :, :pinned], [ledger.evicted] * pinned)
            keys = mx.concatenate([ahead, keys[:, :, pinned:]], axis=2)
        return Tokens(keys.astype(k.dtype), values.astype(v.dtype))


def _unseen(k: mx.array, v: mx.array, columns: int) -> Tokens[mx.array]:
    """What stands for held tokens and new ones where nothing computes with them."""
    return Tokens(
        *(
            mx.broadcast_to(mx.array(mx.nan, x.dtype), (*x.shape[:2], columns, x.shape[3]))
            for x in (k, v)
        )
    )


def _placed(stages: Stages) -> Iterator[tuple[int, tuple[Ledger, int]]]:
    """Where each run begins among the new tokens, and the run."""
    at = 0
    for ledger, count in stages:
        yield at, (ledger, count)
        at += count


def _side_by_side(found: list[mx.array]) -> mx.array:
    """Outputs of runs as one, [B, Hq, L, D]."""
    return found[0] if len(found) == 1 else mx.concatenate(found, axis=2)


_stages = lru_cache(maxsize=16)(Ledger.stages)


@lru_cache(maxsize=16)
def _mask_of_stages(runs: Stages, window: int | None) -> mx.array:
    """[L, columns]: each run of queries sees its own columns of those of all runs."""
    masks = [ledger.sight(ledger.total, count, new=count).full(window) for ledger, count in runs]
    return mx.concatenate(
        [
            mx.concatenate(
                [
                    mask if row == column else mx.zeros((len(mask), other.shape[1]), mx.bool_)
                    for column, other in enumerate(masks)
                ],
                axis=1,
            )
            for row, mask in enumerate(masks)
        ]
    )
