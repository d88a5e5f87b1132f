"""A layer's tiers in MLX arrays, attended by the GPU kernels.

A mask other than the causal one, which only a caller of the library gives, is
attended in plain MLX operations. So is everything where no kernel reads the codecs
or the head dimension: `resolve` does not choose this class then, and a cache
without a model, which learns the dimension late, says so in its stats.
"""

from collections.abc import Iterator
from dataclasses import replace

import mlx.core as mx

from kvcache.gpu import ColdBlocks, DenseTokens, HotRing, TierArrays, TierDecoder, TierPrefill
from kvcache.gpu.decode import MOST_NEW
from kvcache.gpu.families import why_unread
from kvcache.tiers.ledger import Ledger
from kvcache.tiers.memory import Attend
from kvcache.tiers.plain_mlx import DeviceTiers, DeviceTokens
from kvcache.tiers.plan import LayerPlan
from kvcache.tiers.sight import Sight
from kvcache.turn import Rotation


class GpuTiers(DeviceTiers):
    """`DeviceTiers` whose attention is the kernels'.

    decoder, prefill: for few and for many new tokens; others for tests.
    """

    def __init__(
        self,
        plan: LayerPlan,
        *,
        decoder: TierDecoder | None = None,
        prefill: TierPrefill | None = None,
    ) -> None:
        super().__init__(plan)
        self._decoder, self._prefill = decoder or TierDecoder(), prefill or TierPrefill()
        codecs = self._cold.key_codec, self._cold.value_codec
        self._codecs = codecs if plan.sizes.slots else ()

    def is_plain(self, dim: int) -> bool:
        return why_unread(self._codecs, dim) is not None

    def attending(self, ledger: Ledger, new: DeviceTokens | None) -> Attend:
        plain, arrays = super().attending(ledger, new), self._arrays(ledger, new)

        def attend(q: mx.array, sight: Sight, rotation: Rotation | None, scale: float) -> mx.array:
            pins = new is not None and sight.position < self.sizes.pinned
            unread = sight.mask != "causal" or self.is_plain(q.shape[3])
            if unread or (pins and any(sight.turns)):
                return plain(q, sight, rotation, scale)
            run = self._decode if q.shape[2] <= MOST_NEW else self._read_prompt
            return run(q, arrays, sight, rotation, scale)

        return attend

    def _decode(
        self,
        q: mx.array,
        arrays: TierArrays,
        sight: Sight,
        rotation: Rotation | None,
        scale: float,
    ) -> mx.array:
        return self._decoder.attend(
            q,
            q if rotation is None else rotation(q, sight.turns),
            arrays,
            lowest=_lowest(sight),
            position=sight.position,
            scale=scale,
        )

    def _read_prompt(
        self,
        q: mx.array,
        arrays: TierArrays,
        sight: Sight,
        rotation: Rotation | None,
        scale: float,
    ) -> mx.array:
        """Rows that meet the pinned tokens at the same distance go together."""
        lowest, outputs = _lowest(sight), []
        for start, stop in _alike(sight.turns):
            turned = _pinned_turned(arrays, rotation, -sight.turns[start])
            rows = self._prefill.attend(
                q[:, :, start:stop],
                turned,
                lowest=lowest[start:stop],
                position=sight.position + start,
                scale=scale,
            )
            outputs.append(rows)
        return mx.concatenate(outputs, axis=2) if len(outputs) > 1 else outputs[0]

    def _arrays(self, ledger: Ledger, new: DeviceTokens | None) -> TierArrays:
        """Whole buffers and lengths; nothing is sliced or copied."""
        pinned = hot = cold = None
        if ledger.sink:
            keys, values = self._pinned.arrays
            pinned = DenseTokens(keys=keys, values=values, count=ledger.sink)
        if ledger.hot:
            keys, values = self._hot.arrays
            hot = HotRing(
                keys=keys,
                values=values,
                start=ledger.hot_number % self._hot.capacity,
                count=ledger.hot,
                position=ledger.hot_start,
            )
        if ledger.cold:
            cold = ColdBlocks(
                key_codec=self._cold.key_codec,
                value_codec=self._cold.value_codec,
                # Writes replace the parts of a segment.
                segments=[(dict(k), dict(v)) for k, v in self._cold.segments],
                first_slot=ledger.first % self.sizes.slots,
                blocks=ledger.end - ledger.first,
                block=self.sizes.block,
                dim=self._cold.dim,
                slots=self.sizes.slots,
                position=ledger.cold_start,
            )
        fresh = None
        if new is not None:
            fresh = DenseTokens(keys=new.keys, values=new.values, count=new.length)
        return TierArrays(pinned=pinned, cold=cold, hot=hot, new=fresh, new_position=ledger.total)


def _lowest(sight: Sight) -> mx.array:
    """[L]. New pinned tokens come as any others: nothing was let go before them."""
    pairs = zip(sight.lowest, sight.turns, strict=True)
    return mx.array([low if turn else 0 for low, turn in pairs], mx.int32)


def _alike(turns: list[int]) -> Iterator[tuple[int, int]]:
    """The runs [start, stop) of equal turns."""
    start = 0
    for row in range(1, len(turns) + 1):
        if row == len(turns) or turns[row] != turns[start]:
            yield start, row
            start = row


def _pinned_turned(arrays: TierArrays, rotation: Rotation | None, ahead: int) -> TierArrays:
    """The same tiers with pinned keys turned ahead, which is as turning queries back."""
    if rotation is None or not ahead or arrays.pinned is None:
        return arrays
    pinned = arrays.pinned
    keys = rotation(pinned.keys[:, :, : pinned.count], [ahead] * pinned.count)
    return replace(arrays, pinned=DenseTokens(keys=keys, values=pinned.values, count=pinned.count))
