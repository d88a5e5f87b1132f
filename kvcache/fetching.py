"""A layer's cache as mlx-lm's networks use it: they append, and attend to what comes back.

What comes back is decoded. `kvcache.mlx_lm.install` has their attention ask the cache itself
instead; then it need not be, but for networks that look at it in another way.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from enum import Enum
from functools import cache, lru_cache, partial
from typing import Any

import mlx.core as mx

from kvcache.codecs.feedback import LayerMetric
from kvcache.errors import CacheError
from kvcache.fetched.decoded_window import DecodedWindow, moved
from kvcache.fetched.marks import Fetch
from kvcache.fetched.sink_columns import SinkColumns
from kvcache.given import array, integer
from kvcache.holding import Stages, Waiting, appended, like
from kvcache.layer_cache import LayerCache
from kvcache.reference import Mask
from kvcache.sight import Sight
from kvcache.snapshot import Snapshot, Tokens, joined
from kvcache.tiers.cpu import CpuTiers
from kvcache.tiers.ledger import Ledger
from kvcache.tiers.plan import LayerPlan
from kvcache.turn import Rotation

# Columns that pinned tokens may take again in any case, to be met at several distances.
_FEW_COLUMNS = 2048


class Looks(Enum):
    """Whether a network computes with fetched keys and values, where attention is ours."""

    UNKNOWN = 0
    NEVER = 1
    SOMETIMES = 2


class FetchingCache(LayerCache):
    """`LayerCache` as mlx-lm's networks use it.

    keeps_snapshot: whether what `update_and_fetch` returns leads attention back here.
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
        self._looks = Looks.UNKNOWN

    def update_and_fetch(self, k: mx.array, v: mx.array) -> tuple[Any, Any]:
        """Append; returns the tokens that `attend` would see, [B, Hkv, columns, D].

        For attention under the mask of `make_mask`, which was asked before. Columns are the held
        tokens and the new ones, oldest first. Pinned keys come turned the other way, in place of
        queries; where a step lets tokens go amid it, pinned tokens come once for each distance
        (`SinkColumns`). As many tokens as a draft has come as if one by one: where a block leaves
        the hot ring amid them, what they see follows once more, as it is then.
        """
        k, v = array("k", k), array("v", v)
        self._admit(k, v)
        stages = self._stages(self.ledger, k.shape[2])
        if not self.keeps_snapshot:
            return self._in_window(k, v) if len(stages) == 1 else self._met_in_turn(k, v, stages)[1]
        if isinstance(self._memory, CpuTiers) and (len(stages) == 1 or self._looks is Looks.NEVER):
            return self._wait(k, v, stages)
        held, met = self._met_in_turn(k, v, stages)
        attend = partial(self._attend_snapshots, stages, held)
        return Fetch(attend, look=self._look, decode=lambda: met).marked(met)

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
        return _mask_of(ledger, length, self._sinks(ledger, length), window_size)

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

    def _look(self) -> None:
        """A network computes with what was fetched, though attention is ours."""
        self._looks = Looks.SOMETIMES

    def _met_in_turn(
        self, k: mx.array, v: mx.array, stages: Stages
    ) -> tuple[list[Snapshot], Tokens[mx.array]]:
        """Append run by run: what each meets, where attention may ask for it, and all decoded."""
        new, held, met = self._memory.prepare(k, v), list[Snapshot](), []
        for at, (ledger, count) in _placed(stages):
            some = new.cut(at, at + count)
            if self.keeps_snapshot:
                held.append(self._memory.snapshot(ledger, some))
            met.append(self._met(ledger, *Tokens(k, v).cut(at, at + count)))
            self._append(some)
        return held, joined(met)

    def _attend_snapshots(
        self, stages: Stages, held: Sequence[Snapshot], q: mx.array, scale: float, mask: Mask
    ) -> mx.array | None:
        """None where several runs of tokens have a mask of a caller's own."""
        foreign = mask is not _mask_of_stages(stages, None) and not isinstance(mask, str)
        if len(stages) > 1 and foreign:
            return None
        found = []
        for (at, (ledger, count)), each in zip(_placed(stages), held, strict=True):
            some, its = (q, mask) if len(stages) == 1 else (q[:, :, at : at + count], "causal")
            sight = self._fetched_sight(ledger, some.shape[2], count, its)
            scaled = scale / self.plan.temperature
            found.append(self._memory.attend_snapshot(some, each, sight, scaled))
        return _side_by_side(found)

    # -- tokens that wait --

    def _wait(self, k: mx.array, v: mx.array, stages: Stages) -> Tokens[Any]:
        """`update_and_fetch` for kernels, which attend to the memory as it is before it changes.

        So new tokens are written once they have, or when anything else is asked of the cache.
        """
        met = None if self._looks is Looks.NEVER else self._met(self.ledger, k, v)
        columns = sum(ledger.held + count for ledger, count in stages)
        if len(stages) == 1:
            columns += self._sinks(self.ledger, k.shape[2]).added
        waiting = Waiting(stages, appended(*stages[-1]), k, v)
        self._waiting, self.ledger = waiting, waiting.after
        self._shape, self._window = like(k), None
        fetch = Fetch(
            partial(self._attend_waiting, waiting),
            look=self._look,
            decode=partial(self._decode_waiting, waiting),
        )
        if met is not None:
            return fetch.marked(met)
        batch, heads, _, dim = k.shape
        return fetch.standing_in((batch, heads, columns, dim), (k.dtype, v.dtype))

    def _attend_waiting(
        self, waiting: Waiting, q: mx.array, scale: float, mask: Mask
    ) -> mx.array | None:
        """None where they wait no more."""
        if self._waiting is not waiting:
            return None
        # All in one go: each wait for MLX takes its time.
        mx.eval(q, waiting.keys, waiting.values)
        asked, found = self._asked(q, waiting.stages, mask), []
        self._waiting = None
        memory, new = self._memory, self._prepared(waiting)
        for (at, (ledger, count)), (some, sight) in zip(
            _placed(waiting.stages), asked, strict=True
        ):
            tokens = new.cut(at, at + count)
            found.append(memory.attend(some, ledger, tokens, sight, scale / self.plan.temperature))
            memory.append(ledger, appended(ledger, count), tokens)
        if self._looks is Looks.UNKNOWN:
            self._looks = Looks.NEVER
        return _side_by_side(found)

    def _decode_waiting(self, waiting: Waiting) -> Tokens[mx.array]:
        """What was fetched. Raises CacheError where the cache has gone on since."""
        if self._waiting is not waiting:
            raise CacheError(
                "these keys and values were attended to or left behind, and are no longer there: "
                "use what update_and_fetch returns before anything else is done with the cache"
            )
        self._waiting, self.ledger = None, waiting.stages[0][0]
        return self._met_in_turn(waiting.keys, waiting.values, waiting.stages)[1]

    # -- who sees what --

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
        # Kernels take no array, but one that says no more than the rule.
        if isinstance(mask, mx.array) and not self._is_given(mask, ledger, new):
            sinks = self._sinks(ledger, new)
            if sinks.added and mask.shape[-2:] == (new, ledger.held + new + sinks.added):
                mask = sinks.merged(mask)
            if not self._is_rule(mask, ledger, new):
                return self._sight(ledger, ledger.total, queries, new=new, mask=mask)
        rule: Mask = None if mask is None else "causal"
        return self._sight(ledger, ledger.total, queries, new=new, mask=rule)

    def _is_given(self, mask: mx.array, ledger: Ledger, new: int) -> bool:
        """Whether it is what `make_mask` gave."""
        return mask is _mask_of(ledger, new, self._sinks(ledger, new), None)

    def _is_rule(self, mask: mx.array, ledger: Ledger, new: int) -> bool:
        """Whether a mask, on the CPU, where it is known, says what ours would."""
        if not isinstance(self._memory, CpuTiers) or mask.dtype != mx.bool_:
            return False
        whole = self._sight(ledger, ledger.total, new, new=new, mask="causal").whole
        return mask.size == whole.size and bool(mx.array_equal(mask.reshape(whole.shape), whole))

    def _sinks(self, ledger: Ledger, length: int) -> SinkColumns:
        """Pinned tokens as a step meets them; turned or not, alike in all layers of a model."""
        return _sinks(ledger, length, self.plan.turn_sinks)

    # -- decoded tokens --

    def _met(self, ledger: Ledger, k: mx.array, v: mx.array) -> Tokens[mx.array]:
        """All tokens as new ones meet them, and those, in the dtypes that these have."""
        hot = self.plan.hot_dtype.mx
        held = [self._memory.decoded(ledger, hot)] if ledger.held else []
        new = [Tokens(k.astype(hot), v.astype(hot))] if k.shape[2] else []
        spread = self._sinks(ledger, k.shape[2]).spread(joined([*held, *new]), self.rotation)
        return Tokens(spread.keys.astype(k.dtype), spread.values.astype(v.dtype))

    def _in_window(self, k: mx.array, v: mx.array) -> Tokens[mx.array]:
        """`update_and_fetch` by a window, which is kept where it will be of use."""
        new, before, window = self._memory.prepare(k, v), self.ledger, self._window
        after, hot = appended(before, new.length), self.plan.hot_dtype.mx
        rounded = Tokens(*(x.astype(hot).astype(x.dtype) for x in (k, v)))
        most = 0 if self._share else self.most_decoded
        stays, sinks = not moved(before, after), self._sinks(before, new.length)
        if not sinks.is_exact:
            _say_of_distances(new.length)
        if sinks.added or not before.held:
            tokens, window = self._met(before, k, v), None
        elif window is not None and window.goes_on(before, k, v):
            tokens = window.append(*rounded, after)
        else:
            held = self._met(before, k[:, :, :0], v[:, :, :0])
            if stays and held.keys.nbytes + held.values.nbytes < most:
                window = DecodedWindow.of(before, held)
                tokens = window.append(*rounded, after)
            else:
                tokens, window = joined([held, rounded]), None
        self._append(new)
        if window is not None and stays and window.nbytes <= most:
            self._window = window
        return tokens


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
def _sinks(ledger: Ledger, length: int, turn: bool) -> SinkColumns:
    """At one distance where they are met at their own, or would come too often."""
    sinks = SinkColumns.of(ledger.sight(ledger.total, max(length, 1), new=length))
    if turn and sinks.added <= max(_FEW_COLUMNS, ledger.held + length):
        return sinks
    return replace(sinks, runs=((ledger.evicted, length),), is_exact=not turn)


@cache
def _say_of_distances(length: int) -> None:
    warnings.warn(
        f"a step of {length} tokens lets others go so often that all of its queries meet the "
        "pinned tokens from where the first does: feed shorter steps (prefill_step_size), take "
        "larger blocks, or call kvcache.mlx_lm.install()",
        stacklevel=2,
    )


@lru_cache(maxsize=16)
def _mask_of(ledger: Ledger, length: int, sinks: SinkColumns, window: int | None) -> mx.array:
    """[L, columns]: what queries see of fetched tokens; the same object for all layers."""
    whole = ledger.sight(ledger.total, length, new=length).full(window)
    return sinks.mask(whole) if sinks.added else whole


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
