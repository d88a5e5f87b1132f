"""Facts in the cold tier, by hand and on a tiny model."""

from pathlib import Path

import mlx.core as mx
import pytest

from app.bench.meter import Meter
from app.bench.sections import needle, needle_view
from app.bench.sections.needle import NeedleRow
from app.bench.settings import NeedleSettings
from kvcache import CacheConfig, EmberError
from models import load


def test_the_fact_stands_early_in_the_text(tiny_path: Path) -> None:
    loaded = load(tiny_path)
    filler = [5] * 1000
    found = needle.make(loaded, filler, seed=3)
    at = next(i for i, token in enumerate(found.text) if token != 5)
    assert 20 <= at < 300
    assert len(found.number) == 5
    assert f" is {found.number}." in loaded.tokenizer.decode(found.text[at:-700])
    assert found == needle.make(loaded, filler, seed=3)


def test_each_length_is_asked_of_a_cache_without_questions(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer at the second length is that of a cache that was asked nothing before."""
    loaded = load(tiny_path)
    made = needle.make(loaded, [7, 300, 20, 5] * 200, seed=1)
    config = CacheConfig(keys="q8", values="q8", hot=60, max_tokens=900, beyond_context=True)
    seen: list[list[int]] = []
    real = needle._answer

    def answer(model: object, cache: object, question: object) -> list[int]:
        assert isinstance(cache, list)
        assert cache[0].offset == (400, 470, 470)[len(seen)]
        seen.append(real(model, cache, question))
        return seen[-1]

    monkeypatch.setattr(needle, "_answer", answer)
    needle.ask(loaded, config, made, (400, 470))
    needle.ask(loaded, config, made, (470,))
    assert seen[1] == seen[2]
    assert mx.array(seen).shape == (3, 8)


def test_rows_of_a_run(tiny_path: Path) -> None:
    settings = NeedleSettings(model=str(tiny_path), needles=2, lengths=(420, 380))
    with Meter(10) as meter:
        rows = list(needle.run(settings, meter))
    assert [(row.length, row.asked) for row in rows] == [(380, 2), (420, 2)]
    assert all(row.kept <= row.answered_by_f16 <= row.asked for row in rows)


def test_a_length_without_the_fact_is_refused() -> None:
    settings = NeedleSettings(model="m", lengths=(600, 100))
    with pytest.raises(EmberError, match="got --lengths 100, expected at least 350"), Meter(1) as m:
        next(needle.run(settings, m))


def test_findings_add_the_lengths() -> None:
    rows = [
        NeedleRow(kv="h4", hot=256, length=n, asked=10, answered_by_f16=9, kept=kept)
        for n, kept in ((600, 9), (3000, 8))
    ]
    (said,) = needle_view.findings(rows)
    assert said == (
        "20 cases over 600 to 3,000 tokens: the f16 cache answers 18, h4 keeps 17 of them (94.4%)."
    )
