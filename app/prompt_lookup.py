"""Drafts of the next tokens from what stands in the context already (prompt lookup).

An answer often says again what its prompt says: code with a change, names of a text, lines of
itself. What followed the last few tokens where they stood before is drafted, the network
computes a row for each drafted token in one pass, and those are taken that it would have said
anyway. Source: Saxena, "Prompt Lookup Decoding" (2023), after Leviathan et al. (arXiv
2211.17192). Knows no network and no cache: it is told the tokens, and what passes take.
"""

from array import array
from collections.abc import Sequence

import numpy as np

# Rows of a pass at most: more go another way through kernels.
MOST_ROWS = 8
# Tokens of a prompt that are looked through, its newest; a table's places, as bits.
_LOOKED_THROUGH = 1 << 16
_BITS = 16
_FACTORS = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)
_WORD = (1 << 32) - 1
# How many tokens before a place are compared with the newest ones, and behind one that failed.
_LONGEST, _NEAR = 31, 16
# Of a match by the bits of its length: how often its next token came, at first and by how many.
_BELIEVED = (0.0, 0.3, 0.45, 0.7, 0.85, 0.95)
_BELIEF, _FORGETS = 3.0, 0.95
# What drafts may lose, in passes of one row: at first, for each token since, and at most.
_CREDIT, _EARNED, _MOST_CREDIT = 1.0, 0.015, 4.0
# A pass must promise so much more than one of a row.
_WORTH = 1.05
# What a row more takes before it was measured, and on a GPU, where weights are read once.
_ROW_MORE, _ROW_MORE_ON_GPU = 0.3, 0.05
# What a GPU loses that waits for a token before it is given the next.
_WAIT = 0.3
# How fast what was measured follows what is faster, and what is slower: other programs disturb.
_FASTER, _SLOWER = 0.5, 0.05


def _followed(known: float, seen: float) -> float:
    """What is known of a time, after one that was seen; a disturbed one says little."""
    return known + (_FASTER if seen < known else _SLOWER) * (min(seen, 2 * known) - known)


class PassCosts:
    """What a pass of several rows takes, in passes of one, and what drafts may still lose.

    measures: by the clock, which differs from run to run; where rows of a pass are not to the
    last bit what they are alone, lengths of drafts must not depend on it.
    """

    def __init__(self, *, measures: bool) -> None:
        self.measures = measures
        base, more = (1.0, _ROW_MORE) if measures else (1.0 + _WAIT, _ROW_MORE_ON_GPU)
        self._guess = [0.0, 1.0, *(base + more * row for row in range(1, MOST_ROWS))]
        self.ratios = self._guess
        self.credit = _CREDIT
        self._single = 0.0

    def took(self, rows: int, seconds: float) -> None:
        """A pass of so many rows took so long."""
        if not self.measures:
            return
        if rows == 1:
            self._single = _followed(self._single or seconds, seconds)
        elif self._single:
            ratio = max(1.0, seconds / self._single)
            self.ratios[rows] = _followed(self.ratios[rows], ratio)

    def begin(self) -> None:
        """Another answer: what was measured in the last one may be so no more."""
        self.ratios = [
            (one + other) / 2 for one, other in zip(self.ratios, self._guess, strict=True)
        ]

    def settle(self, rows: int, tokens: int) -> None:
        """A pass of so many rows gave so many tokens."""
        self._earn(tokens - self.ratios[rows])

    def _earn(self, passes: float) -> None:
        self.credit = min(_MOST_CREDIT, self.credit + passes)

    def affords(self, rows: int) -> bool:
        """Whether a pass may give one token only."""
        return self.ratios[rows] - 1 <= self.credit

    def said(self) -> None:
        """The answer has a token more."""
        self._earn(_EARNED)

    def waited(self) -> None:
        """A token was waited for to draft what follows, and nothing did."""
        self._earn(-_WAIT)


class _Table:
    """Where each run of `length` tokens stood last: the place behind it.

    Of fixed size: runs that share a place overwrite each other, and who finds one compares.
    """

    def __init__(self, length: int, ids: "array[int]") -> None:
        self.length = length
        self._places = array("i", bytes(4 << _BITS))
        if len(ids) > length:
            every = np.frombuffer(ids, np.int32).astype(np.uint32)
            last = len(every) - length
            mixed = sum(
                every[at : at + last] * np.uint32(factor)
                for at, factor in zip(range(length), _FACTORS, strict=False)
            )
            places = np.frombuffer(self._places, np.int32)
            places[mixed >> (32 - _BITS)] = np.arange(length, len(every))

    def put(self, ids: "array[int]") -> None:
        """The newest token stands behind the run before it."""
        at = len(ids) - 1
        if at >= self.length:
            self._places[self._slot(ids, at)] = at

    def find(self, ids: "array[int]") -> int:
        """The place behind the newest tokens where they stood before; 0: nowhere known."""
        end = len(ids)
        if end <= self.length:
            return 0
        found = self._places[self._slot(ids, end)]
        same = ids[found - self.length : found] == ids[end - self.length :]
        return found if found and same else 0

    def _slot(self, ids: "array[int]", end: int) -> int:
        mixed = 0
        for at, factor in zip(range(end - self.length, end), _FACTORS, strict=False):
            mixed += ids[at] * factor
        return (mixed & _WORD) >> (32 - _BITS)


class PromptLookup:
    """Drafts for one answer.

    costs: is told what passes took and gave by who computes them.
    """

    def __init__(self, prompt: Sequence[int], costs: PassCosts) -> None:
        self.costs = costs
        costs.begin()
        self._ids = array("i", prompt[-_LOOKED_THROUGH:])
        self._tables = tuple(_Table(n, self._ids) for n in (3, 2, 1))
        # How often a match's next token came, by the bits of its length, and how many came.
        self._came = [_BELIEF * share for share in _BELIEVED]
        self._all = [_BELIEF] * len(_BELIEVED)
        # The place of what would come next, and how many tokens before it are the newest ones.
        self._place = self._length = 0
        # Where and after how many tokens a match last failed.
        self._lost = self._lost_length = 0
        self._look()

    def add(self, token: int) -> None:
        """The next token of the answer."""
        place = self._place
        came = place and self._ids[place] == token
        if place:
            kind = self._kind(self._length)
            self._came[kind] = _FORGETS * self._came[kind] + bool(came)
            self._all[kind] = _FORGETS * self._all[kind] + 1
        self.costs.said()
        self._ids.append(token)
        for table in self._tables:
            table.put(self._ids)
        if came:
            self._place, self._length = place + 1, self._length + 1
        else:
            if place:
                self._lost, self._lost_length = place, self._length
            self._look()

    @property
    def has_found(self) -> bool:
        """Whether the newest tokens stood before: a cheap question, asked for each token."""
        return self._place > 0

    def draft(self, most: int) -> list[int]:
        """At most `most` tokens that are worth a pass; [] where one of a single row is best."""
        if not self.has_found:
            return []
        costs = self.costs
        likely = tokens = 1.0
        best, rows = _WORTH, 1
        for more in range(1, min(most, MOST_ROWS - 1) + 1):
            kind = self._kind(self._length + more - 1)
            likely *= self._came[kind] / self._all[kind]
            tokens += likely
            if costs.affords(more + 1) and tokens / costs.ratios[more + 1] > best:
                best, rows = tokens / costs.ratios[more + 1], more + 1
        # Text that repeats itself goes on so.
        span = len(self._ids) - self._place
        return [self._ids[self._place + at % span] for at in range(rows - 1)]

    def _look(self) -> None:
        """Find where the newest tokens stood before."""
        ids, (long, short, single) = self._ids, self._tables
        place = long.find(ids)
        if place or not (near := self._near()):
            self._place = place or short.find(ids) or single.find(ids)
            self._length = self._matched(self._place)
        else:
            # A copy with a change: a long one is believed in again.
            self._place, self._length = near, max(1, self._lost_length // 4)

    def _near(self) -> int:
        """The place behind the newest token where it stands soon after the one that failed."""
        lost, token = self._lost, self._ids[-1]
        if not lost:
            return 0
        stop = min(lost + _NEAR, len(self._ids) - 1)
        return next((at + 1 for at in range(lost, stop) if self._ids[at] == token), 0)

    def _matched(self, place: int) -> int:
        ids, end = self._ids, len(self._ids)
        most = min(place, _LONGEST)
        return next((at for at in range(most) if ids[place - 1 - at] != ids[end - 1 - at]), most)

    @staticmethod
    def _kind(length: int) -> int:
        return min(length.bit_length(), len(_BELIEVED) - 1)
