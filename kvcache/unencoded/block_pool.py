"""A pool of fixed-size pages that the sequences of one layer share.

Pages are counted by reference: forked sequences hold the same pages, and a page
is free again when the last one gives it back. All memory is one allocation of a
stated size. Which tokens a page holds, and for whom, is not known here.
Source: Kwon et al., PagedAttention (arXiv 2309.06180).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Self

from kvcache.config import MOST_TOKENS, Backend, HotDtype, parse_bytes
from kvcache.errors import CacheError
from kvcache.given import integer, integers
from kvcache.unencoded.page_store import PageShape, make_pages


@dataclass(frozen=True, kw_only=True)
class PoolStats:
    """Pages of a pool, and what happened to them since it was made.

    pages: all there can be. made: those that were in use or prewarmed at least
    once, whose memory is claimed.
    in_use: held by a sequence now. shared: held more than once.
    high_water: most in use at a time.
    taken: pages handed out; reused: those of them that had been made before.
    returned: pages that became free again; evicted: page references that
    sequences dropped to stay within their own limit; copied: shared pages that
    were copied because one of their sequences wrote.
    """

    pages: int
    page_bytes: int
    made: int
    in_use: int
    shared: int
    high_water: int
    taken: int
    reused: int
    returned: int
    evicted: int
    copied: int

    @property
    def free(self) -> int:
        """Pages that can be taken."""
        return self.pages - self.in_use

    @property
    def hit_rate(self) -> float:
        """Share of taken pages that needed no new memory; 1.0 where none was taken."""
        return self.reused / self.taken if self.taken else 1.0

    def as_dict(self) -> dict[str, int | float]:
        """All fields, `free` and `hit_rate`, for JSON."""
        return asdict(self) | {"free": self.free, "hit_rate": self.hit_rate}


class BlockPool:
    """Pages of unencoded keys and values for one layer's `PagedKVCache`s.

    pages: how many there are; they never take more than pages * page_bytes.
    page_tokens: tokens in a page.

    One thread uses a pool and its sequences; `stats` may be read from others.
    """

    def __init__(
        self,
        pages: int,
        *,
        kv_heads: int,
        head_dim: int,
        page_tokens: int = 32,
        dtype: HotDtype | str = HotDtype.F16,
        backend: Backend | str = Backend.AUTO,
    ) -> None:
        self.shape = shape = PageShape(
            pages=integer("pages", pages, least=1),
            page_tokens=integer("page_tokens", page_tokens, least=1, most=MOST_TOKENS),
            kv_heads=integer("kv_heads", kv_heads, least=1, most=MOST_TOKENS),
            head_dim=integer("head_dim", head_dim, least=1, most=MOST_TOKENS),
        )
        if shape.pages * shape.page_tokens > MOST_TOKENS:
            raise CacheError(
                f"got pages of {page_tokens} tokens for more than {MOST_TOKENS} tokens; "
                "expected fewer pages"
            )
        self.dtype, self.backend = HotDtype.of("dtype", dtype), Backend.of(backend).resolve()
        self.store = make_pages(shape, self.dtype, self.backend)
        self._free = bytearray(b"\x01" * shape.pages)
        self._references = [0] * shape.pages
        self._made = self._high_water = 0
        self._taken = self._reused = self._returned = self._evicted = self._copied = 0

    @classmethod
    def for_budget(
        cls,
        budget: str | int,
        *,
        kv_heads: int,
        head_dim: int,
        page_tokens: int = 32,
        dtype: HotDtype | str = HotDtype.F16,
        backend: Backend | str = Backend.AUTO,
    ) -> Self:
        """As many pages as fit in `budget` ("64MiB" or bytes). Raises CacheError for none."""
        size = (
            parse_bytes(budget) if isinstance(budget, str) else integer("budget", budget, least=1)
        )
        one = PageShape(
            pages=1,
            page_tokens=integer("page_tokens", page_tokens, least=1, most=MOST_TOKENS),
            kv_heads=integer("kv_heads", kv_heads, least=1, most=MOST_TOKENS),
            head_dim=integer("head_dim", head_dim, least=1, most=MOST_TOKENS),
        )
        page_bytes = one.page_bytes(HotDtype.of("dtype", dtype))
        if size < page_bytes:
            raise CacheError(
                f"a budget of {size} bytes holds no page: one of {page_tokens} tokens takes "
                f"{page_bytes} bytes; give a larger budget or smaller pages"
            )
        return cls(
            size // page_bytes,
            kv_heads=kv_heads,
            head_dim=head_dim,
            page_tokens=page_tokens,
            dtype=dtype,
            backend=backend,
        )

    def __repr__(self) -> str:
        used = self.shape.pages - self.free
        return f"BlockPool({used} of {self.shape.pages} pages in use, {self.page_bytes} bytes each)"

    @property
    def nbytes(self) -> int:
        """Bytes of all pages: what the pool takes at most."""
        return self.shape.pages * self.page_bytes

    @property
    def page_bytes(self) -> int:
        """Bytes of one page's keys and values."""
        return self.shape.page_bytes(self.dtype)

    @property
    def free(self) -> int:
        """Pages that can be taken."""
        return self._free.count(1)

    def stats(self) -> PoolStats:
        """Plain figures, read without evaluating an array."""
        return PoolStats(
            pages=self.shape.pages,
            page_bytes=self.page_bytes,
            made=self._made,
            in_use=self.shape.pages - self.free,
            shared=sum(count > 1 for count in self._references),
            high_water=self._high_water,
            taken=self._taken,
            reused=self._reused,
            returned=self._returned,
            evicted=self._evicted,
            copied=self._copied,
        )

    def prewarm(self, pages: int) -> None:
        """Claim the memory of the first `pages` pages, so that taking them claims none."""
        if not 0 <= integer("pages", pages, least=None) <= self.shape.pages:
            raise CacheError(f"got {pages} pages to prewarm, but the pool has {self.shape.pages}")
        if pages > self._made:
            self.store.prewarm(self._made, pages)
            self._made = pages

    # -- what sequences call --

    def references(self, page: int) -> int:
        """How many sequences' rows hold `page`. Raises CacheError for no page of this pool."""
        return self._references[self._page("page", page)]

    def _page(self, name: str, page: int) -> int:
        return integer(name, page, most=self.shape.pages - 1)

    def take(self, after: int | None = None) -> int:
        """A page held once: the one that follows page `after` if it is free and made.

        Else the first free one, so that pages are reused before new memory is
        claimed and a sequence's pages tend to lie in a row. Raises CacheError
        when no page is free.
        """
        following = -1 if after is None else self._page("after", after) + 1
        if 0 <= following < self._made and self._free[following]:
            page = following
        else:
            page = self._free.find(1)
        if page < 0:
            raise self.exhausted(1)
        self._free[page] = 0
        self._references[page] = 1
        self._taken += 1
        if page < self._made:
            self._reused += 1
        self._made = max(self._made, page + 1)
        self._high_water = max(self._high_water, self.shape.pages - self.free)
        return page

    def exhausted(self, pages: int) -> CacheError:
        """The error of a pool that has not `pages` free."""
        return CacheError(
            f"the pool is exhausted: {pages} more pages are needed, {self.free} of "
            f"{self.shape.pages} are free ({self.shape.page_tokens} tokens each, {self.nbytes} "
            "bytes in all); clear or trim a sequence, limit sequences by max_pages, or make the "
            "pool larger"
        )

    def share(self, pages: Sequence[int]) -> None:
        """Hold each of `pages` once more."""
        for page in integers("pages", pages, least=None):
            if not self.references(page):
                raise CacheError(f"page {page} is free: it cannot be shared")
            self._references[page] += 1

    def give_back(self, pages: Sequence[int]) -> None:
        """Hold each of `pages` once less; one that nobody holds is free."""
        for page in integers("pages", pages, least=None):
            if not self.references(page):
                raise CacheError(f"page {page} is free already: a sequence gave it back twice")
            self._references[page] -= 1
            if not self._references[page]:
                self._free[page] = 1
                self._returned += 1

    def evict(self, pages: Sequence[int]) -> None:
        """`give_back` of pages that a sequence drops to stay within its limit."""
        self.give_back(pages)
        self._evicted += len(pages)

    def own_copy(self, page: int) -> int:
        """A copy of `page` for the caller alone, in exchange for the caller's hold on it."""
        if not self.references(page):
            raise CacheError(f"page {page} is free: nobody holds it")
        copy = self.take()
        self.store.copy(page, copy)
        self.give_back([page])
        self._copied += 1
        return copy
