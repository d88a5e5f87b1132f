"""Which pages of a pool each batch row of a sequence holds, oldest first.

All rows hold equally many. Does not know tokens, only how many there are; pages
go back to the pool when the tables are dropped.
"""

import weakref
from collections import Counter
from collections.abc import Sequence

from kvcache.errors import CacheError
from kvcache.given import integers
from kvcache.unencoded.block_pool import BlockPool


class PageTables:
    """The page numbers of each row, `rows[b][i]` holding tokens i * page on."""

    def __init__(self, pool: BlockPool) -> None:
        self.pool = pool
        self.rows: list[list[int]] = []
        finalizer = weakref.finalize(self, _give_back, pool, self.rows)
        finalizer.atexit = False

    def pages(self) -> set[int]:
        """Every page that a row holds."""
        return {page for table in self.rows for page in table}

    def pages_for(self, tokens: int) -> int:
        """How many pages `tokens` take."""
        return -(-tokens // self.pool.shape.page_tokens)

    def share(self, other: "PageTables", rows: Sequence[int] | None) -> None:
        """Add rows of `other` (all by default), holding the same pages.

        Raises CacheError, and adds nothing, for rows that it has not, or none.
        """
        count = len(other.rows)
        chosen = range(count) if rows is None else integers("rows", rows, least=None)
        if not all(0 <= row < count for row in chosen) or len(chosen) < min(count, 1):
            raise CacheError(
                f"got rows {list(chosen)}, expected at least one of the cache's {count}, from 0 on"
            )
        for row in chosen:
            self.pool.share(other.rows[row])
            self.rows.append(list(other.rows[row]))

    def clear(self) -> None:
        """Give all pages back."""
        _give_back(self.pool, self.rows)

    def cut(self, tokens: int) -> None:
        """Give back what lies beyond the first `tokens`."""
        pages = self.pages_for(tokens)
        for table in self.rows:
            self.pool.give_back(table[pages:])
            del table[pages:]

    def make_room(self, rows: int, held: int, tokens: int, overdue: int) -> None:
        """Let the `overdue` oldest pages go and make room behind `held` tokens for more.

        Every row can write its next `tokens` afterwards: what it shares there is
        copied first. Raises CacheError, and changes nothing, when the pool has
        not enough free pages.
        """
        self._check_room(rows, held, tokens, overdue)
        if not self.rows:
            self.rows.extend([] for _ in range(rows))
        for table in self.rows:
            self.pool.evict(table[:overdue])
            del table[:overdue]
        held -= overdue * self.pool.shape.page_tokens
        partial = held % self.pool.shape.page_tokens
        for table in self.rows:
            if partial and self.pool.references(table[-1]) > 1:
                table[-1] = self.pool.own_copy(table[-1])
            while len(table) < self.pages_for(held + tokens):
                table.append(self.pool.take(after=table[-1] if table else None))

    def spans(self, held: int, tokens: int) -> list[range]:
        """Where in the pool the `tokens` of each row behind `held` lie, neighbours joined."""
        page = self.pool.shape.page_tokens
        spans: list[range] = []
        for table in self.rows:
            for index in range(held // page, self.pages_for(held + tokens)):
                start = max(held, index * page)
                end = min(held + tokens, (index + 1) * page)
                at = table[index] * page + start % page
                if spans and spans[-1].stop == at:
                    at = spans.pop().start
                spans.append(range(at, table[index] * page + end - index * page))
        return spans

    def _check_room(self, rows: int, held: int, tokens: int, overdue: int) -> None:
        """Refuse what the pool cannot hold even after the overdue pages are back."""
        needed = rows * (self.pages_for(held + tokens) - self.pages_for(held))
        if held % self.pool.shape.page_tokens:
            written = Counter(table[-1] for table in self.rows)
            # Of the rows that alone hold a page, the last may write into it.
            needed += sum(
                count - (self.pool.references(page) == count) for page, count in written.items()
            )
        let_go = Counter(page for table in self.rows for page in table[:overdue])
        freed = sum(self.pool.references(page) == count for page, count in let_go.items())
        if needed > self.pool.free + freed:
            raise self.pool.exhausted(needed - freed)


def _give_back(pool: BlockPool, rows: list[list[int]]) -> None:
    for table in rows:
        pool.give_back(table)
    rows.clear()
