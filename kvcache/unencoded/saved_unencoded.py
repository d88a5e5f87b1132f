"""The states of the unencoded caches, as mlx-lm saves them, and what makes one whole.

Each ends with a sum over all of it (`integrity.checksum`); what was saved before there
were sums is read without. Nothing here makes a cache; whoever does may take every
number and shape as given.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import mlx.core as mx

from kvcache.checks import check_tokens
from kvcache.config import HotDtype
from kvcache.errors import CacheError
from kvcache.integrity import (
    bad_field,
    check_array,
    check_memory,
    check_sum,
    checksum,
    count,
    field,
)
from kvcache.unencoded.page_store import PageShape

Tokens: TypeAlias = tuple[mx.array | None, mx.array | None]
DynamicState: TypeAlias = tuple[
    mx.array | None, mx.array | None, int, int, mx.array | None, mx.array
]
Figures: TypeAlias = Mapping[str, int | str]
PagedState: TypeAlias = tuple[mx.array | None, mx.array | None, Figures, mx.array]


class Dynamic(NamedTuple):
    """Keys and values [B, Hkv, offset, D], None where nothing is held; padding int32 [B]."""

    tokens: Tokens
    offset: int
    limit: int
    padding: mx.array | None

    def dump(self) -> DynamicState:
        """The state."""
        total = checksum(f"{self.offset} {self.limit}", [*self.tokens, self.padding])
        return *self.tokens, self.offset, self.limit, self.padding, total

    @property
    def dtype(self) -> HotDtype:
        """That the tokens are held in."""
        return _dtype(self.tokens)

    @classmethod
    def of(cls, state: DynamicState) -> "Dynamic":
        """What `dump` gave. Raises CacheError for anything else."""
        (keys, values, offset, limit, padding), total = _parts(state, 5)
        fields = {"offset": offset, "max_seq_len": limit}
        held = count(fields, "offset")
        if field(fields, "max_seq_len", int) < max(held, 1):
            raise bad_field("max_seq_len", limit, f"at least {max(held, 1)}")
        batch = _check_tokens(keys, values, held)
        if padding is not None:
            rows = padding.size if batch is None and isinstance(padding, mx.array) else batch
            check_array("padding", padding, (rows or 0,), mx.int32)
        saved = cls((keys, values), held, limit, padding)
        if total is not None:
            check_sum(total, f"{held} {limit}", [keys, values, padding])
        if padding is not None and padding.size and padding.min().item() < 0:
            raise bad_field("padding", padding.tolist(), "at least 0")
        return saved


class Paged(NamedTuple):
    """Keys and values [B, Hkv, held, D], None where nothing is held."""

    tokens: Tokens
    offset: int
    max_pages: int | None
    shape: PageShape
    dtype: HotDtype

    def dump(self) -> PagedState:
        """The state."""
        shape = self.shape
        figures = {
            "offset": self.offset,
            "max_pages": self.max_pages or 0,
            "pages": shape.pages,
            "page_tokens": shape.page_tokens,
            "kv_heads": shape.kv_heads,
            "head_dim": shape.head_dim,
            "dtype": self.dtype.value,
        }
        return *self.tokens, figures, checksum(_text(figures), self.tokens)

    @classmethod
    def of(cls, state: PagedState) -> "Paged":
        """What `dump` gave. Raises CacheError for anything else."""
        (keys, values, figures), total = _parts(state, 3)
        if not isinstance(figures, Mapping):
            raise bad_field("figures", figures, "a dict")
        names = "pages", "page_tokens", "kv_heads", "head_dim"
        shape = PageShape(**{name: count(figures, name, least=1) for name in names})
        dtype = field(figures, "dtype", str)
        known = {each.value: each for each in HotDtype}
        if dtype not in known:
            raise bad_field("dtype", dtype, ", ".join(known))
        check_memory(shape.pages * shape.page_bytes(known[dtype]))
        held = keys.shape[2] if isinstance(keys, mx.array) and keys.ndim == 4 else 0
        batch = _check_tokens(keys, values, held) or 0
        offset, limit = count(figures, "offset", least=held), count(figures, "max_pages")
        if batch * -(-held // shape.page_tokens) > shape.pages:
            raise bad_field("pages", shape.pages, f"enough for {batch} rows of {held} tokens")
        if (offset > held and not limit) or (offset - held) % shape.page_tokens:
            raise bad_field("offset", offset, f"{held}, and whole pages that were let go")
        if total is not None:
            check_sum(total, _text(figures), [keys, values])
        return cls((keys, values), offset, limit or None, shape, known[dtype])


def _parts(state: Any, length: int) -> tuple[Sequence[Any], Any]:
    """The parts of a state and its sum, None where it was saved without one."""
    if not isinstance(state, Sequence) or len(state) not in (length, length + 1):
        raise CacheError(f"this is not a saved cache: expected {length + 1} parts")
    return state[:length], state[length] if len(state) > length else None


def _text(figures: Figures) -> str:
    return repr(sorted(figures.items()))


def _check_tokens(keys: object, values: object, held: int) -> int | None:
    """B of keys and values [B, Hkv, held, D] of one known dtype; None where there are none."""
    if not held:
        for name, array in (("keys", keys), ("values", values)):
            check_array(name, array, None, mx.float16)
        return None
    if not (isinstance(keys, mx.array) and isinstance(values, mx.array)):
        raise bad_field("keys", type(keys).__name__, f"keys and values of {held} tokens")
    check_tokens(keys, values, (None, None, None))
    for name, array in (("keys", keys), ("values", values)):
        check_array(name, array, (*keys.shape[:2], held, keys.shape[3]), keys.dtype)
    if keys.dtype not in {dtype.mx for dtype in HotDtype}:
        raise bad_field("keys", keys.dtype, ", ".join(dtype.value for dtype in HotDtype))
    return keys.shape[0]


def _dtype(tokens: Tokens) -> HotDtype:
    keys = tokens[0]
    return next((d for d in HotDtype if keys is not None and d.mx == keys.dtype), HotDtype.F16)
