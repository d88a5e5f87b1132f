from dataclasses import replace

import pytest

from app.bench.figures.shapes import TINYLLAMA
from app.bench.machine import Machine
from app.bench.meter import Meter
from app.bench.sections import claim, claim_view, generate
from app.bench.sections.claim import ClaimRow
from app.bench.sections.generate import PROMPT, Generator, Way, take
from app.bench.settings import ClaimSettings
from kvcache import Backend
from models import load


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "machine", lambda: Machine(read_bytes_s=1e10, flops=1e11))


def _rows(tiny_path: object, **more: object) -> list[ClaimRow]:
    base = ClaimSettings(model=str(tiny_path), lengths=(3, 12), seconds=60)
    settings = replace(base, **more)
    with Meter(claim.expected_seconds(settings)) as meter:
        return list(claim.run(settings, meter))


def test_measured_and_counted(tiny_path: object) -> None:
    short, long = _rows(tiny_path)
    assert (short.shape, short.model, short.length, long.length) == ("phi-2", "tiny", 3, 12)
    assert short.ops_ratio < long.ops_ratio
    for row in (short, long):
        assert row.no_cache_s
        assert row.cache_s
        assert row.ratio == pytest.approx(row.no_cache_s / row.cache_s)
        assert row.tiers_s
    # 2 * 32 layers * 32 heads * 80 dims * 2 bytes, 8 + 3 tokens, all of them hot
    assert short.cache_bytes == short.tiers_bytes == 327_680 * (PROMPT + 3)
    assert short.read_s == pytest.approx(short.cache_bytes / 1e10)
    assert short.read_bytes == 5_560_000_000 + short.cache_bytes


def test_without_time_only_counted(tiny_path: object) -> None:
    rows = _rows(tiny_path, seconds=-1.0, shape="tinyllama")
    assert [row.no_cache_s for row in rows] == [None, None]
    assert [row.ratio for row in rows] == [None, None]
    assert rows[0].shape == TINYLLAMA.name
    assert any("not measured" in finding for finding in claim_view.findings(rows))


def test_an_interrupt_leaves_what_was_measured(
    tiny_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Generator.steps

    def stop_at_tiers(self: Generator, way: Way) -> object:
        if way is Way.TIERS:
            raise KeyboardInterrupt
        return real(self, way)

    monkeypatch.setattr(generate.Generator, "steps", stop_at_tiers)
    rows: list[ClaimRow] = []
    settings = ClaimSettings(model=str(tiny_path), lengths=(3,), seconds=60)
    with pytest.raises(KeyboardInterrupt), Meter(1) as meter:
        rows.extend(claim.run(settings, meter))
    assert rows[0].ratio is not None
    assert rows[0].tiers_ratio is None


def test_every_way_gives_the_same_tokens(tiny_path: object) -> None:
    """Within the hot tier two tiers are an f16 cache, and no cache is only slower."""
    model = load(str(tiny_path), backend=Backend.REFERENCE).model
    generator = Generator(model=model, backend=Backend.REFERENCE, window=512)
    assert len(take(generator.steps(Way.NO_CACHE), 5, until=lambda _: False)) == 5
    tokens = []
    for way in Way:
        caches = generator.caches(way)
        ids = generator.prompt()
        tokens.append(generator.next(ids, caches))
    assert len(set(tokens)) == 1


def test_measuring_ends_where_the_next_length_does_not_fit() -> None:
    settings = ClaimSettings(model="m", lengths=(2, 4, 8), seconds=10.0)
    assert not claim.enough(settings, [])
    assert not claim.enough(settings, [1.0, 2.0])  # 3 + 2 * 2 for the next length
    assert not claim.enough(settings, [1.0, 2.0, 3.0])
    assert claim.enough(settings, [1.0, 2.0, 2.0, 2.0])  # 7 + 4 * 2
    assert claim.enough(settings, [5.0, 6.0, 0.0])
    assert not claim.enough(settings, [1.0] * 8)


def test_held_bytes_count_the_tiers_by_hand() -> None:
    f16, tiers = claim.held_bytes(TINYLLAMA, 1000)
    assert f16 == 22528 * 1000
    # 4 sinks; (1000 - 4 - 256) // 64 = 11 blocks cold; 292 hot
    cold_elements = 11 * 64 * 22528 // 2
    assert tiers == (4 + 292) * 22528 + round(cold_elements * 4.375 / 8)


@pytest.mark.parametrize(
    ("ratios", "word", "more", "holds"),
    [
        ([(8, 10.0), (16, 100.0)], "VERIFIED", "average 55.0x", (8, 16)),
        ([(8, 4.0), (16, 12.0), (32, 20.0)], "FALSIFIED", "it holds from 16 to 32", (16, 32)),
        ([(8, 2.0), (16, 3.0)], "FALSIFIED", "it holds at none", (None, None)),
        ([], "x: not measured.", "", (None, None)),
    ],
)
def test_the_verdict(
    ratios: list[tuple[int, float]], word: str, more: str, holds: tuple[int | None, int | None]
) -> None:
    said, found = claim_view.sentence("x", ratios), claim_view.verdict("x", ratios)
    assert said.startswith(word)
    assert more in said
    assert found.ruling in said.lower()
    assert (found.holds_from, found.holds_to) == holds


def test_the_verdicts_are_those_of_the_findings(tiny_path: object) -> None:
    rows = _rows(tiny_path)
    verdicts, findings = claim_view.verdicts(rows), claim_view.findings(rows)
    assert [each.what.split()[0] for each in verdicts] == ["operations", *["generation"] * 2]
    for verdict, finding in zip(verdicts, findings, strict=False):
        assert finding.startswith(f"{verdict.ruling.upper()} for {verdict.what}")
