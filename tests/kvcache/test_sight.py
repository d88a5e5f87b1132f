"""Who sees what, against the rule said token by token."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kvcache import CacheError, Rotation
from kvcache.sight import Sight

ROTATION = Rotation(periods=7.0 ** (np.arange(3) / 3), traditional=True)


@st.composite
def sights(draw: st.DrawFn) -> Sight:
    """Of tiers that let tokens go as queries come, or of what is held alone."""
    pinned, evicted = draw(st.integers(0, 5)), draw(st.integers(0, 9))
    held, queries = draw(st.integers(1, 23)), draw(st.integers(1, 7))
    total = pinned + evicted + held
    new = draw(st.sampled_from([0, queries]))
    queries = queries if new else min(queries, held)
    steps = draw(st.lists(st.integers(0, 3), min_size=queries, max_size=queries))
    most = [total + new - queries + row - pinned for row in range(queries)]
    gone = [min(evicted + sum(steps[:row]), most[row]) for row in range(queries)]
    return Sight(
        position=total + new - queries,
        gone=tuple(gone),
        total=total,
        pinned=pinned,
        evicted=evicted,
        new=new,
    )


def columns_of(sight: Sight) -> list[int]:
    """The positions that are held or new."""
    end = sight.total + sight.new
    return [at for at in range(end) if not 0 <= at - sight.pinned < sight.evicted]


def is_seen(sight: Sight, row: int, at: int) -> bool:
    kept = at < sight.pinned or at >= sight.pinned + sight.gone[row]
    return kept and at <= sight.position + row


@settings(deadline=None)
@given(sight=sights(), window=st.one_of(st.none(), st.integers(1, 9)))
def test_the_whole_mask(sight: Sight, window: int | None) -> None:
    columns = columns_of(sight)
    assert sight.columns == len(columns)
    mask = np.asarray(sight.full(window))
    assert mask.shape == (sight.queries, len(columns))
    for row, column in np.ndindex(*mask.shape):
        at = columns[column]
        near = window is None or sight.position + row < at + window
        assert mask[row, column] == (is_seen(sight, row, at) and near)
    if sight.is_whole:
        rows = range(len(columns) - sight.queries, len(columns))
        causal = np.arange(len(columns)) <= np.array(rows)[:, None]
        np.testing.assert_array_equal(np.asarray(sight.full()), causal)


@settings(deadline=None)
@given(sight=sights(), data=st.data())
def test_some_tokens(sight: Sight, data: st.DataObject) -> None:
    columns = columns_of(sight)
    begin = data.draw(st.integers(0, len(columns) - 1))
    stop = data.draw(st.integers(begin + 1, len(columns)))
    first, count = columns[begin], stop - begin
    assume(columns[stop - 1] == first + count - 1)  # not on both sides of the gap
    want = np.array(
        [[is_seen(sight, row, first + i) for i in range(count)] for row in range(sight.queries)]
    )
    mask = sight.of(first, count)
    if mask is None:
        assert want.all()
    else:
        np.testing.assert_array_equal(np.asarray(mask), want)
    if first >= sight.pinned and sight.hides(first, count):
        assert not want.any()


def test_the_mask_that_is_given_is_cut_by_columns() -> None:
    """Two pinned tokens, five let go, three held."""
    given_mask = mx.arange(10).reshape(2, 5)
    sight = Sight(
        position=8, gone=(5, 5), total=10, pinned=2, evicted=5, mask=given_mask, rotation=ROTATION
    )
    assert np.asarray(sight.of(0, 2)).tolist() == [[0, 1], [5, 6]]
    assert np.asarray(sight.of(8, 2)).tolist() == [[3, 4], [8, 9]]
    assert not sight.suits_kernels
    with pytest.raises(
        CacheError, match="got a mask of 5 columns, expected 6: 5 held tokens and 1"
    ):
        replace(sight, new=1)


def test_without_a_mask_all_is_seen() -> None:
    sight = Sight(position=3, gone=(0, 2), total=9, mask=None)
    assert sight.of(4, 5) is None
    assert not sight.suits_kernels
    assert np.asarray(sight.full()).all()


@pytest.mark.parametrize(
    ("fields", "suits"),
    [
        ({"position": 9, "gone": (0, 0), "total": 9, "new": 2}, True),
        # new pinned tokens while none is let go, and while some are
        ({"position": 1, "gone": (0, 0), "total": 1, "new": 2}, True),
        ({"position": 1, "gone": (0, 3), "total": 1, "new": 2}, False),
        # held pinned tokens are seen whole
        ({"position": 4, "gone": (3, 3), "total": 6}, True),
        ({"position": 3, "gone": (0, 0), "total": 5}, False),
        ({"position": 9, "gone": (0, 0), "total": 9, "new": 2, "mask": None}, False),
    ],
)
def test_what_kernels_take(fields: dict[str, object], suits: bool) -> None:
    assert Sight(pinned=4, **fields).suits_kernels == suits


def test_queries_turn_back_by_what_is_gone() -> None:
    sight = Sight(position=20, gone=(0, 5, 5, 9), total=20, pinned=2, new=4, rotation=ROTATION)
    assert sight.lowest == (0, 7, 7, 11)
    assert sight.turns == (0, -5, -5, -9)
    q = mx.random.normal((1, 3, 4, 8), key=mx.random.key(1))
    turned = np.asarray(sight.turned(q))
    np.testing.assert_array_equal(turned, np.asarray(ROTATION(q, [0, -5, -5, -9])))
    assert sight.turning == ((0, 1), (-5, 2), (-9, 1))
    keys = mx.random.normal((1, 1, 2, 8), key=mx.random.key(2))
    # As scores have it: a key turned ahead meets a query that is not turned back.
    back = (sight.turned(q)[:, 0, 1] * keys[:, 0, 0]).sum()
    ahead = (q[:, 0, 1] * ROTATION(keys, [5, 5])[:, 0, 0]).sum()
    assert float(back) == pytest.approx(float(ahead), abs=1e-5)


def test_an_unknown_rope_turns_nothing() -> None:
    sight = Sight(position=20, gone=(0, 5), total=20, pinned=2, new=2)
    q = mx.ones((1, 1, 2, 8))
    assert sight.turned(q) is q
    assert sight.lowest == (0, 7)
    assert sight.turning == ((0, 2),)
