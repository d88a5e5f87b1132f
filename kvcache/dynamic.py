"""A cache that forgets nothing: unencoded keys and values in a buffer that doubles.

The plain form behind `--kv f16`, and the yardstick of every encoded cache. It
knows neither positions nor rotations: keys arrive after RoPE.
"""

from collections.abc import Sequence
from typing import Any, Self

import mlx.core as mx
import numpy as np

from kvcache.attention import attend_dense, attend_native
from kvcache.buffers import DeviceBuffer, HostBuffer, make_buffer
from kvcache.config import Backend, HotDtype
from kvcache.errors import CacheError
from kvcache.native.library import HEAD_DIM_STEP
from kvcache.reference import Mask
from kvcache.stats import CacheStats

_FIRST_CAPACITY = 256


class DynamicKVCache:
    """Keys and values of one layer, up to `max_seq_len` tokens.

    Follows mlx-lm's cache contract (`update_and_fetch`, `offset`, `make_mask`,
    `state`, `trim`) and adds `append`, `attend_held` and `attend`.

    left_padding: for a batch of unequal prompts, how many leading tokens of
    each row are padding; they are never attended to.
    """

    def __init__(
        self,
        max_seq_len: int,
        *,
        dtype: HotDtype = HotDtype.F16,
        backend: Backend = Backend.AUTO,
        left_padding: Sequence[int] | None = None,
    ) -> None:
        if max_seq_len < 1:
            raise CacheError(f"got max_seq_len={max_seq_len}, expected at least 1")
        self.max_seq_len = max_seq_len
        self.offset = 0
        self.backend = backend.resolve()
        self.dtype = dtype
        self._padding = None if left_padding is None else np.array(left_padding, np.int32)
        self._keys: DeviceBuffer | HostBuffer | None = None
        self._values: DeviceBuffer | HostBuffer | None = None

    # -- what attention needs --

    def append(self, k: mx.array, v: mx.array) -> None:
        """Add L tokens: k and v are [B, Hkv, L, D].

        Raises CacheError, and leaves the cache as it was, for shapes that do
        not fit or more tokens than `max_seq_len`.
        """
        self._check(k, v)
        end = self.offset + k.shape[2]
        keys, values = self._reserve(k, end)
        keys.write(self.offset, k)
        values.write(self.offset, v)
        self.offset = end

    def attend_held(self, q: mx.array, *, scale: float, mask: Mask = "causal") -> mx.array:
        """Attend q [B, Hq, L, D] to the held tokens; its last row is the newest token."""
        if self.offset < q.shape[2]:
            raise CacheError(
                f"got {q.shape[2]} queries over {self.offset} held tokens, "
                "expected no more queries than tokens; append first"
            )
        keys, values = self._keys, self._values
        causal = q.shape[2] == 1 if mask is None else isinstance(mask, str)
        native = causal and q.shape[3] % HEAD_DIM_STEP == 0
        if native and isinstance(keys, HostBuffer) and isinstance(values, HostBuffer):
            return attend_native(
                q, keys.memory, values.memory, held=self.offset, scale=scale, padding=self._padding
            )
        visible = self._visible(q.shape[2], mask)
        return attend_dense(
            q, self.keys(), self.values(), scale=scale, mask=visible, backend=self.backend
        )

    def attend(
        self, q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: Mask = "causal"
    ) -> mx.array:
        """`append`, then `attend_held`."""
        self.append(k, v)
        return self.attend_held(q, scale=scale, mask=mask)

    # -- what is held --

    def keys(self) -> mx.array:
        """The held keys [B, Hkv, offset, D], oldest first."""
        return self._held(self._keys)

    def values(self) -> mx.array:
        """The held values [B, Hkv, offset, D], oldest first."""
        return self._held(self._values)

    def stats(self) -> CacheStats:
        """Tokens and bytes; every held token is hot."""
        token_bytes = self._token_bytes()
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
            allocated_bytes=self._capacity() * token_bytes,
            fp16_bytes=held * HotDtype.F16.mx.size // self.dtype.mx.size,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the allocated buffers."""
        return self.stats().allocated_bytes

    def clear(self) -> None:
        """Forget all tokens and keep the buffers."""
        self.offset = 0

    def reset(self) -> None:
        """Forget all tokens and give the buffers back."""
        self.offset = 0
        self._keys = self._values = None

    # -- mlx-lm's cache contract --

    def update_and_fetch(self, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
        """Append, then return all held keys and values [B, Hkv, offset, D]."""
        self.append(k, v)
        return self.keys(), self.values()

    def make_mask(
        self, length: int, return_array: bool = False, window_size: int | None = None
    ) -> Mask:
        """The mask of `length` tokens about to be appended."""
        if window_size is None and not return_array and self._padding is None:
            return None if length == 1 else "causal"
        rows = mx.arange(self.offset, self.offset + length)[:, None]
        columns = mx.arange(self.offset + length)[None]
        mask = rows >= columns
        if window_size is not None:
            mask = mask & (rows < columns + window_size)
        return self._without_padding(mask)

    @property
    def state(self) -> tuple[mx.array | None, mx.array | None, int]:
        """Held keys, held values and the token count."""
        if self._keys is None:
            return None, None, self.offset
        return self.keys(), self.values(), self.offset

    @state.setter
    def state(self, value: tuple[mx.array | None, mx.array | None, int]) -> None:
        keys, values, self.offset = value
        self._keys = self._values = None
        if keys is not None and values is not None:
            into = self._reserve(keys, keys.shape[2])
            for buffer, tokens in zip(into, (keys, values), strict=True):
                buffer.write(0, tokens)

    def pending(self) -> list[mx.array]:
        """Arrays to evaluate before the next step; cheaper than `state`, which copies."""
        buffers = [buffer for buffer in (self._keys, self._values) if buffer is not None]
        return [array for buffer in buffers for array in buffer.pending()]

    def is_trimmable(self) -> bool:
        """Always: nothing is ever encoded or let go."""
        return True

    def trim(self, n: int) -> int:
        """Drop the newest `n` tokens; returns how many were dropped."""
        dropped = min(max(n, 0), self.offset)
        self.offset -= dropped
        return dropped

    def filter(self, rows: Sequence[int]) -> None:
        """Keep only the given batch rows."""
        if self._keys is not None and self._values is not None:
            self._keys, self._values = self._keys.rows(rows), self._values.rows(rows)
        if self._padding is not None:
            self._padding = self._padding[list(rows)]

    # -- the buffers --

    def _check(self, k: mx.array, v: mx.array) -> None:
        if k.ndim != 4 or k.shape != v.shape:
            raise CacheError(
                f"got keys {k.shape} and values {v.shape}, expected two equal [B, Hkv, L, D]"
            )
        if self._keys is not None:
            held, new = self._keys.shape, k.shape
            if (held[0], held[1], held[3]) != (new[0], new[1], new[3]):
                raise CacheError(
                    f"got keys {new}, but the cache holds [B, Hkv, _, D] = "
                    f"[{held[0]}, {held[1]}, _, {held[3]}]"
                )
        if self.offset + k.shape[2] > self.max_seq_len:
            raise CacheError(
                f"{k.shape[2]} more tokens do not fit: the cache holds {self.offset} of "
                f"{self.max_seq_len}; raise max_seq_len, or trim or clear it first"
            )

    def _reserve(
        self, like: mx.array, tokens: int
    ) -> tuple[DeviceBuffer | HostBuffer, DeviceBuffer | HostBuffer]:
        """The buffers of keys and values, grown to hold `tokens`."""
        batch, heads, _, dim = like.shape
        if self._keys is None or self._values is None:
            shape = batch, heads, self._room_for(tokens), dim
            self._keys = make_buffer(shape, self.dtype, self.backend)
            self._values = make_buffer(shape, self.dtype, self.backend)
        elif tokens > self._capacity():
            capacity = self._room_for(tokens)
            self._keys = self._keys.grown(capacity, self.offset)
            self._values = self._values.grown(capacity, self.offset)
        return self._keys, self._values

    def _room_for(self, tokens: int) -> int:
        capacity = max(self._capacity(), _FIRST_CAPACITY)
        while capacity < tokens:
            capacity *= 2
        return min(capacity, self.max_seq_len)

    def _capacity(self) -> int:
        return 0 if self._keys is None else self._keys.shape[2]

    def _held(self, buffer: DeviceBuffer | HostBuffer | None) -> mx.array:
        if buffer is None:
            raise CacheError("the cache is empty: append keys and values first")
        return buffer.read(self.offset)

    def _token_bytes(self) -> int:
        if self._keys is None:
            return 0
        batch, heads, _, dim = self._keys.shape
        return 2 * batch * heads * dim * self.dtype.mx.size

    # -- padding --

    def _visible(self, queries: int, mask: Mask) -> Mask:
        """`mask` with padded positions hidden; an array is taken as it is (see make_mask)."""
        if self._padding is None:
            return mask
        if isinstance(mask, str):
            rows = mx.arange(self.offset - queries, self.offset)[:, None]
            return self._without_padding(rows >= mx.arange(self.offset)[None])
        if mask is None:
            return self._without_padding(mx.ones((queries, self.offset), mx.bool_))
        return mask

    def _without_padding(self, mask: mx.array) -> mx.array:
        """Causal [L, S] -> [B, 1, L, S] with each row's padding hidden from its tokens.

        Padding still sees padding: a row with nothing visible would make NaN.
        """
        if self._padding is None:
            return mask
        length, end = mask.shape
        padding = mx.array(self._padding)[:, None, None, None]
        real_key = mx.arange(end) >= padding
        padding_query = mx.arange(end - length, end)[:, None] < padding
        return mask & (real_key | padding_query)

    @classmethod
    def from_state(cls, state: Any) -> Self:
        """A cache over saved keys and values (mlx-lm's `load_prompt_cache`)."""
        keys, values, offset = state
        dtype = next(d for d in HotDtype if keys is None or d.mx == keys.dtype)
        cache = cls(max(int(offset), 1), dtype=dtype)
        cache.state = keys, values, int(offset)
        return cache
