"""A cache that forgets nothing: unencoded keys and values in a buffer that doubles.

The unencoded form behind `--kv f16`, and the yardstick of every encoded cache. It
knows neither positions nor rotations: keys arrive after RoPE.
"""

from collections.abc import Sequence
from typing import Self

import mlx.core as mx
import numpy as np

from kvcache.attention import attend_on_cpu, attend_unencoded
from kvcache.checks import (
    check_finite,
    check_finite_queries,
    check_queries,
    check_tokens,
    checked_rows,
    scored,
)
from kvcache.config import MOST_TOKENS, Backend, HotDtype
from kvcache.errors import CacheError
from kvcache.given import array, flag, integer, integers, refused
from kvcache.native.structs import HEAD_DIM_STEP
from kvcache.reference import Mask
from kvcache.sight import Sight
from kvcache.stats import CacheStats
from kvcache.unencoded.buffers import CpuBuffer, Layout, MlxBuffer, Whole
from kvcache.unencoded.growing_buffer import GrowingBuffer
from kvcache.unencoded.padding import LeftPadding
from kvcache.unencoded.saved_unencoded import Dynamic, DynamicState

_FIRST_CAPACITY = 256


class DynamicKVCache:
    """Keys and values of one layer, up to `max_seq_len` tokens; None: as many as come.

    Follows mlx-lm's cache contract (`update_and_fetch`, `offset`, `make_mask`,
    `state`, `trim`) and adds `append`, `attend_held` and `attend`.

    capacity: tokens that the buffer has room for at first; it doubles as it must, and there
    is none before the first token.
    dtype, backend: or their words, such as "f32" and "cpu".
    left_padding: for a batch of unequal prompts, how many leading tokens of
    each row are padding; they are never attended to.
    validate: refuse NaN, infinite and too large tokens. By default only the CPU
    backend does, which reads them at once anyway; elsewhere each append would
    wait for the device.
    """

    def __init__(
        self,
        max_seq_len: int | None = None,
        *,
        capacity: int = _FIRST_CAPACITY,
        dtype: HotDtype | str = HotDtype.F16,
        backend: Backend | str = Backend.AUTO,
        left_padding: Sequence[int] | None = None,
        validate: bool | None = None,
    ) -> None:
        limit = integer("max_seq_len", MOST_TOKENS if max_seq_len is None else max_seq_len, least=1)
        first = integer("capacity", capacity, least=1, most=MOST_TOKENS)
        self.offset = 0
        self.dtype, self.backend = HotDtype.of("dtype", dtype), Backend.of(backend).resolve()
        self._on_cpu = self.backend is Backend.CPU
        self._validate = self._on_cpu if validate is None else flag("validate", validate)
        self._padding = None if left_padding is None else LeftPadding.of(left_padding)
        self._buffer = GrowingBuffer(limit, first, self.dtype, self.backend)

    def __repr__(self) -> str:
        return f"DynamicKVCache({self.dtype.value}, {self.stats()})"

    # -- what attention needs --

    def append(self, k: mx.array, v: mx.array) -> None:
        """Add L tokens: k and v are [B, Hkv, L, D].

        Raises CacheError, and leaves the cache as it was, for shapes that do
        not fit, more tokens than `max_seq_len`, or what `validate` refuses.

        Keys take one write and values another: to join them first would copy both
        once more. Who has them joined writes once (`append_joined`), as does a kernel
        that makes both (`reserve`, `buffer`, `advance`).
        """
        k, v = array("k", k), array("v", v)
        room = self._checked_room(k, v)
        room.write(self.offset, k, v)
        self.offset += k.shape[2]

    def append_joined(self, kv: mx.array) -> None:
        """Like `append`, for keys and values in one array [2, B, Hkv, L, D]: one launch."""
        kv = array("kv", kv)
        if kv.ndim != 5 or kv.shape[0] != 2:
            raise CacheError(f"got {kv.shape}, expected keys, then values: [2, B, Hkv, L, D]")
        room = self._checked_room(kv[0], kv[1])
        room.write_joined(self.offset, kv)
        self.offset += kv.shape[3]

    def attend_held(self, q: mx.array, *, scale: float, mask: Mask = "causal") -> mx.array:
        """Attend q [B, Hq, L, D] to the held tokens; its last row is the newest token."""
        q, layout = array("q", q), self._buffer.layout
        if layout is None:
            raise CacheError("the cache is empty: append keys and values first")
        scale, mask = self._scored(q, scale, mask, layout, self.offset)
        return self._attend(q, scale, mask)

    def attend(
        self, q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: Mask = "causal"
    ) -> mx.array:
        """`append`, then `attend_held`; what is refused changes nothing."""
        q, k, v = array("q", q), array("k", k), array("v", v)
        self._check_new(k, v)
        layout = k.shape[0], k.shape[1], k.shape[3]
        scale, mask = self._scored(q, scale, mask, layout, self.offset + k.shape[2])
        self.append(k, v)
        return self._attend(q, scale, mask)

    def _scored(
        self, q: mx.array, scale: float, mask: Mask, layout: Layout, held: int
    ) -> tuple[float, Mask]:
        """Scale and mask of queries that are known to fit."""
        check_queries(q, layout, held)
        if self._validate:
            check_finite_queries(q)
        return scored(scale, mask, (*q.shape[:3], held))

    def _attend(self, q: mx.array, scale: float, mask: Mask) -> mx.array:
        buffer, padding = self._buffer.filled(), self._padding
        causal = q.shape[2] == 1 if mask is None else isinstance(mask, str)
        if causal and q.shape[3] % HEAD_DIM_STEP == 0 and isinstance(buffer, CpuBuffer):
            keys, values = buffer.whole
            rows = None if padding is None else padding.rows
            return attend_on_cpu(q, keys, values, held=self.offset, scale=scale, padding=rows)
        visible = mask if padding is None else padding.visible(q.shape[2], self.offset, mask)
        return attend_unencoded(
            q, self.keys(), self.values(), scale=scale, mask=visible, backend=self.backend
        )

    # -- what a kernel writes and reads by itself --

    def reserve(self, tokens: int, shape: Layout | None = None) -> None:
        """Make room for `tokens` more, which a kernel then writes; see `advance`.

        shape: B, Hkv and D, for a cache that has no buffer yet. Raises
        CacheError past `max_seq_len`.
        """
        known = self._buffer.layout
        given = known if shape is None else _layout(shape)
        if given is None:
            raise CacheError("the cache has no buffer yet: give reserve a shape (B, Hkv, D)")
        if known not in (None, given):
            raise CacheError(f"got shape {given}, but the cache holds (B, Hkv, D) = {known}")
        self._buffer.room(self.offset, integer("tokens", tokens), given)

    def buffer(self) -> Whole:
        """All keys, then all values: [2, B, Hkv, capacity, D], of which `offset` tokens count.

        Its shape stays until the cache must grow. The CPU backend gives its
        memory, to be written in place (bfloat16 as its bits); others give an MLX
        array, which the next append copies while it is still referred to.
        """
        return self._buffer.filled().whole

    def advance(self, tokens: int, written: mx.array | None = None) -> None:
        """Count `tokens` that a kernel has written behind the held ones, unseen by `validate`.

        written: the kernel's new whole buffer, where it is an MLX array, which
        cannot be written in place. Raises CacheError, and changes nothing, for
        more tokens than there is room or an array unlike `buffer()`.
        """
        if not 0 <= integer("tokens", tokens, least=None) <= self.capacity - self.offset:
            raise CacheError(
                f"got {tokens} tokens to count, but {self.capacity - self.offset} have room; "
                "reserve them first"
            )
        if written is not None:
            self._buffer.replace(array("written", written))
        self.offset += tokens

    # -- what is held --

    def keys(self) -> mx.array:
        """The held keys [B, Hkv, offset, D], oldest first."""
        return self._buffer.filled().keys(self.offset)

    def values(self) -> mx.array:
        """The held values [B, Hkv, offset, D], oldest first."""
        return self._buffer.filled().values(self.offset)

    def stats(self) -> CacheStats:
        """Tokens and bytes; every held token is hot."""
        token_bytes = self._buffer.token_bytes
        held = self.offset * token_bytes
        return CacheStats(
            total=self.offset,
            sink=0,
            hot=self.offset,
            cold=0,
            evicted=0,
            sink_bytes=0,
            hot_bytes=held,
            cold_bytes=0,
            allocated_bytes=self.capacity * token_bytes,
            fp16_bytes=held * HotDtype.F16.mx.size // self.dtype.mx.size,
            key_bytes=held // 2,
            value_bytes=held // 2,
        )

    @property
    def max_seq_len(self) -> int:
        """Tokens that it can hold."""
        return self._buffer.limit

    @property
    def capacity(self) -> int:
        """Tokens that the buffer has room for; 0 where there is none yet."""
        return self._buffer.capacity

    @property
    def batch(self) -> int:
        """B; 0 before the first token."""
        return self._buffer.layout[0] if self._buffer.layout else 0

    @property
    def kv_heads(self) -> int:
        """Hkv; 0 before the first token."""
        return self._buffer.layout[1] if self._buffer.layout else 0

    @property
    def head_dim(self) -> int:
        """D; 0 before the first token."""
        return self._buffer.layout[2] if self._buffer.layout else 0

    @property
    def nbytes(self) -> int:
        """Bytes of the allocated memory."""
        return self.stats().allocated_bytes

    def clear(self) -> None:
        """Forget all tokens and keep the memory."""
        self.offset = 0

    def reset(self) -> None:
        """Forget all tokens and give the memory back."""
        self.offset = 0
        self._buffer.memory = None

    # -- mlx-lm's cache contract --

    def update_and_fetch(self, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
        """Append, then return all held keys and values [B, Hkv, offset, D]."""
        self.append(k, v)
        return self.keys(), self.values()

    def make_mask(
        self, length: int, return_array: bool = False, window_size: int | None = None
    ) -> Mask:
        """The mask of `length` tokens about to be appended."""
        length = integer("length", length, least=1)
        if window_size is not None:
            window_size = integer("window_size", window_size, least=1)
        if window_size is None and not return_array and self._padding is None:
            return None if length == 1 else "causal"
        mask = Sight.of_all(length, self.offset + length).full(window_size)
        return mask if self._padding is None else self._padding.hide(mask)

    def size(self) -> int:
        """Tokens held."""
        return self.offset

    def empty(self) -> bool:
        """Whether no token is held."""
        return self.offset == 0

    @property
    def state(self) -> DynamicState:
        """Held keys, held values, the token count, its limit, each row's padding, a sum."""
        tokens = (self.keys(), self.values()) if self.offset else (None, None)
        padding = None if self._padding is None else mx.array(self._padding.rows)
        return Dynamic(tokens, self.offset, self.max_seq_len, padding).dump()

    @state.setter
    def state(self, value: DynamicState) -> None:
        self._take(Dynamic.of(value))

    @classmethod
    def from_state(cls, state: DynamicState) -> Self:
        """A cache over saved keys and values (mlx-lm's `load_prompt_cache`).

        Raises CacheError for a state of something else, or a damaged one.
        """
        saved = Dynamic.of(state)
        cache = cls(saved.limit, dtype=saved.dtype)
        cache._take(saved)
        return cache

    def _take(self, saved: Dynamic) -> None:
        keys, values = saved.tokens
        if self._validate and keys is not None and values is not None:
            check_finite(keys, values, self.dtype, on_cpu=self._on_cpu)
        self.reset()
        self._buffer.limit, padding = saved.limit, saved.padding
        self._padding = None if padding is None else LeftPadding(rows=np.array(padding))
        if keys is not None and values is not None:
            self.append(keys, values)

    def pending(self) -> list[mx.array]:
        """Arrays to evaluate before the next step; cheaper than `state`, which copies."""
        return [] if self._buffer.memory is None else self._buffer.memory.pending()

    def is_trimmable(self) -> bool:
        """Always: nothing is ever encoded or let go."""
        return True

    def trim(self, n: int) -> int:
        """Drop the newest `n` tokens; returns how many were dropped."""
        dropped = min(max(integer("n", n, least=None), 0), self.offset)
        self.offset -= dropped
        return dropped

    def filter(self, rows: Sequence[int]) -> None:
        """Keep only the given batch rows. Raises CacheError for rows that there are not."""
        padded = 0 if self._padding is None else len(self._padding.rows)
        kept = checked_rows(rows, self.batch or padded) if self.batch or padded else []
        if self._buffer.memory is not None:
            self._buffer.memory = self._buffer.memory.rows(kept)
        if self._padding is not None:
            self._padding = self._padding.of_rows(kept)

    # -- inside --

    def _checked_room(self, k: mx.array, v: mx.array) -> MlxBuffer | CpuBuffer:
        """Room for k and v, once they are known to fit."""
        self._check_new(k, v)
        if self._validate:
            check_finite(k, v, self.dtype, on_cpu=self._on_cpu)
        return self._buffer.room(self.offset, k.shape[2], (k.shape[0], k.shape[1], k.shape[3]))

    def _check_new(self, k: mx.array, v: mx.array) -> None:
        rows = None if self._padding is None else len(self._padding.rows)
        check_tokens(k, v, self._buffer.layout or (rows, None, None))


def _layout(shape: object) -> Layout:
    """B, Hkv and D. Raises CacheError."""
    match integers("shape", shape, least=1):
        case [batch, heads, dim]:
            return batch, heads, dim
    raise refused("shape", shape, "(B, Hkv, D)")
