"""Attention over the tiers in plain MLX operations: one softmax over all that is seen.

The oracle of the tier kernels. Scores and decoded blocks are held for a bounded
number of tokens at a time, so memory does not grow with the cold tier.
"""

from collections.abc import Iterator, Sequence
from functools import reduce

import mlx.core as mx

from kvcache.reference import MAX_SCORES, Partial, attend_part, finish, merge
from kvcache.tiers.cold_ring import ColdView, count_blocks, side_by_side
from kvcache.tiers.sight import Piece, Sight


def attend_tiers(
    q: mx.array,
    q_sink: mx.array,
    *,
    pieces: Sequence[Piece],
    cold: ColdView | None,
    sight: Sight,
    scale: float,
) -> mx.array:
    """Attend q [B, Hq, L, D] to pieces and cold blocks; returns [B, Hq, L, D] in q's dtype.

    q_sink: the queries as they meet pinned tokens.
    cold: the blocks [first, end) of the sight's ledger, or None if there are none.
    """
    parts = [_attend_piece(q_sink if p.pinned else q, p, sight, scale) for p in pieces]
    if cold is not None:
        parts.extend(_attend_cold(q, cold, sight, scale))
    return finish(reduce(merge, parts)).astype(q.dtype)


def _attend_piece(q: mx.array, piece: Piece, sight: Sight, scale: float) -> Partial:
    mask = sight.of(piece.position, piece.keys.shape[2], pinned=piece.pinned)
    return attend_part(
        q.astype(mx.float32) * scale,
        piece.keys.astype(mx.float32),
        piece.values.astype(mx.float32),
        mask,
    )


def _attend_cold(q: mx.array, cold: ColdView, sight: Sight, scale: float) -> Iterator[Partial]:
    """The cold tier's partial, if it is seen: attended in the codecs' bases, turned back once."""
    batch, heads, length, _ = q.shape
    block = sight.ledger.sizes.block
    # Rotations differ by KV head: its G query heads become rows.
    grouped = mx.unflatten(q, 1, (cold.kv_heads, -1)).flatten(2, 3)  # [B, Hkv, G*L, D]
    rotated = cold.key_codec.rotate(grouped).reshape(q.shape) * scale
    step = max(1, MAX_SCORES // (batch * heads * length * block))
    position, parts = sight.ledger.cold_start, []
    for keys, values in cold.in_steps(step):
        count = count_blocks(keys) * block
        if not sight.hides(position, count):
            k = side_by_side(cold.key_codec.decode_rotated(keys))
            v = side_by_side(cold.value_codec.decode_rotated(values))
            parts.append(attend_part(rotated, k, v, sight.of(position, count)))
        position += count
    if parts:
        whole = reduce(merge, parts)
        value = cold.value_codec.unrotate(whole.value.reshape(grouped.shape)).reshape(q.shape)
        yield Partial(whole.top, whole.total, value)
