"""A text far beyond the window, by hand and on a tiny model."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app.bench.meter import Meter
from app.bench.sections import endless, endless_view
from app.bench.sections.endless import EndlessRow, Task
from app.bench.sections.text import text_ids
from app.bench.settings import EndlessSettings
from kvcache import CacheConfig, EmberError
from models import load


def test_samples_by_hand() -> None:
    settings = EndlessSettings(model="m", ctx=100, samples=1)
    assert endless.samples(1000, settings) == [132, 420, 709, 998]


def test_distinct_4_grams_by_hand() -> None:
    assert endless.distinct([1, 2, 3, 4, 1, 2, 3, 4]) == 4 / 5


def test_quarters_by_hand() -> None:
    nll = np.repeat([1.0, 2.0, 3.0, 4.0], 40)
    fresh = np.full((4, 32), 2.0)
    assert endless.quarters(nll, fresh, [39, 79, 119, 159]) == [0.5, 1.0, 1.5, 2.0]


def test_within_the_window_nothing_is_lost(tiny_path: Path) -> None:
    """A text as long as the window: reading it is the fresh recomputation."""
    loaded = load(tiny_path)
    ids = text_ids(loaded.tokenizer)[:102]
    base = CacheConfig(max_tokens=100, keys="f16", values="f16", beyond_context=True)
    fresh = endless.fresh_likelihoods(loaded.model, base, ids, [99])
    whole = endless.likelihoods(loaded.model, replace(base, max_tokens=500), ids)
    assert fresh.shape == (1, 32)
    assert whole[68:100] == pytest.approx(fresh[0], rel=1e-4)


def test_rows_of_a_run(tiny_path: Path) -> None:
    settings = EndlessSettings(model=str(tiny_path), ctx=100, tokens=250, generate=130, samples=1)
    with Meter(10) as meter:
        rows = list(endless.run(settings, meter))
    assert [row.cache for row in rows] == [*endless.policies(CacheConfig()), "default"]
    assert [row.test for row in rows] == [*[Task.READ.value] * 4, Task.TOLD.value]
    assert all(row.finite for row in rows)
    told = rows[-1]
    assert told.tokens == 130
    # 3 layers * 2 (K, V) * 2 KV heads * 16 dims * 2 bytes a token
    assert told.allocated_most == 384 * 100
    assert told.allocated_least in range(1, 384 * 100 + 1)
    titles = [table.title for table in endless_view.tables(rows)]
    assert titles == ["Reading far beyond the window", "Telling far beyond the window"]


def test_a_short_text_is_refused(tiny_path: Path) -> None:
    settings = EndlessSettings(model=str(tiny_path), ctx=100, tokens=120)
    with (
        pytest.raises(EmberError, match="text of 120 tokens, expected at least 172"),
        Meter(1) as m,
    ):
        next(endless.run(settings, m))


def test_findings_tell_the_worst_quarter() -> None:
    read = EndlessRow(
        test=Task.READ.value,
        cache="default",
        ctx=1024,
        tokens=20000,
        finite=True,
        nll=3.0,
        quarter_1=1.01,
        quarter_2=0.97,
        quarter_3=1.0,
        quarter_4=1.02,
    )
    told = EndlessRow(
        test=Task.TOLD.value,
        cache="default",
        ctx=1024,
        tokens=20000,
        finite=False,
        distinct=0.4,
        allocated_least=1_000_000,
        allocated_most=2_000_000,
    )
    first, second = endless_view.findings([read, told])
    assert "within 3.0% of" in first
    assert ": NaN or infinity; the cache's 1.00 MB, looked at ten times, rose to 2.00 MB" in second
    assert "40% of the 4-grams" in second
