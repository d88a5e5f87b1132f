"""Attention over the tiers in plain MLX operations: one softmax over all that is seen.

The oracle of the tier kernels. Scores and decoded blocks are held for a bounded
number of tokens at a time, so memory does not grow with the cold tier.
"""

from collections.abc import Iterable, Iterator
from functools import reduce

import mlx.core as mx

from kvcache.reference import MAX_SCORES, Partial, attend_part, finish, merge
from kvcache.sight import Sight
from kvcache.snapshot import Placed, Snapshot, side_by_side


def attend_tiers(q: mx.array, held: Snapshot, sight: Sight, scale: float) -> mx.array:
    """Attend q [B, Hq, L, D] to all that is held and new; [B, Hq, L, D] in q's dtype."""
    parts = [*_unencoded(q, held, sight, scale), *_cold(q, held, sight, scale)]
    return finish(reduce(merge, parts)).astype(q.dtype)


def _unencoded(q: mx.array, held: Snapshot, sight: Sight, scale: float) -> Iterator[Partial]:
    own, turned = (queries.astype(mx.float32) * scale for queries in (q, sight.turned(q)))
    for first, (keys, values) in _cut(held.unencoded(), sight.pinned):
        queries = turned if first < sight.pinned else own
        k, v = keys.astype(mx.float32), values.astype(mx.float32)
        yield attend_part(queries, k, v, sight.of(first, k.shape[2]))


def _cut(pieces: Iterable[Placed], pinned: int) -> Iterator[Placed]:
    """Pieces of pinned tokens and of others: new tokens may be both. None is empty."""
    for first, tokens in pieces:
        count = pinned - first
        if 0 < count < tokens.length:
            yield first, tokens.cut(0, count)
            yield pinned, tokens.cut(count, tokens.length)
        elif tokens.length:
            yield first, tokens


def _cold(q: mx.array, held: Snapshot, sight: Sight, scale: float) -> Iterator[Partial]:
    """The blocks' partial, if they are seen: attended in the codecs' bases, rotated back once."""
    batch, heads, length, _ = q.shape
    (keys, values), block = held.cold.codecs, held.bounds.block
    # Rotations differ by KV head: its G query heads become rows.
    grouped = mx.unflatten(q, 1, (held.kv_heads, -1)).flatten(2, 3)  # [B, Hkv, G*L, D]
    rotated = keys.rotate(grouped).reshape(q.shape) * scale if held.bounds.blocks else q
    parts = []
    for position, *pair in held.encoded(max(1, MAX_SCORES // (batch * heads * length * block))):
        k, v = (
            side_by_side(codec.decode_rotated(encoded))
            for codec, encoded in zip((keys, values), pair, strict=True)
        )
        if not sight.hides(position, k.shape[2]):
            parts.append(attend_part(rotated, k, v, sight.of(position, k.shape[2])))
    if parts:
        top, total, value = reduce(merge, parts)
        yield Partial(top, total, values.unrotate(value.reshape(grouped.shape)).reshape(q.shape))
