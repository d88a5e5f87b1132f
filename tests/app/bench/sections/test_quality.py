from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app import layer_losses
from app.bench.figures.shapes import network_of
from app.bench.meter import Meter
from app.bench.sections import passkey, quality, quality_view, text
from app.bench.sections.harness import Tiers
from app.bench.sections.quality import QualityRow, Setup
from app.bench.sections.text import Text
from app.bench.settings import QualitySettings
from kvcache import CacheConfig, CachePlan, EmberError, resolve


def _letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def test_passkeys_are_told_hidden_and_asked() -> None:
    found = passkey.make(_letters, [0] * 40)
    text = "".join(map(chr, found.ids))
    told, asked = text.split("\0" * 40)
    for start, count in found.answers:
        key = text[start : start + count].strip()
        assert key.isdigit()
        assert f"door is {key}. Remember it." in told
        assert f"door is {key}" in asked
    assert len(found.answers) == 6
    assert found == passkey.make(_letters, [0] * 40)


def test_recall_takes_every_digit() -> None:
    found = passkey.make(_letters, [0] * 40)
    agrees = np.ones(len(found.ids) - 1, bool)
    assert found.recalled(agrees) == 1.0
    first, second = found.answers[:2]
    agrees[first[0] - 1 + 3] = False  # a digit of the first answer
    agrees[second[0] - 2] = False  # the last letter of the second question: of no account
    assert found.recalled(agrees) == pytest.approx(5 / 6)


def test_the_baseline_comes_first_and_nothing_twice() -> None:
    settings = QualitySettings(
        model="m", kv=("q4", "h4"), varied=("q4", "h8"), hot=(0, 128), sinks=(0,)
    )
    assert [(s.kv, s.hot, s.sinks) for s in quality.setups(settings)] == [
        ("h4", 128, 4),
        ("hkivi4/turbo4u", 128, 4),
        ("q4", 128, 4),
        ("q4", 0, 4),
        ("h8", 0, 4),
        ("h8", 128, 4),
        ("q4", 128, 0),
        ("h8", 128, 0),
    ]
    every = quality.setups(QualitySettings(model="m"))
    assert Setup(kv="turbo3p/f16", hot=128, sinks=4) in every
    assert Setup(kv="f16/kvarn2", hot=128, sinks=4) in every
    peer = Setup(kv="kvarn3", hot=128, sinks=4, block=128)
    assert peer in every
    assert (peer.label, peer.tiers.block) == ("kvarn3 in 128s", 128)
    assert len(every) == len(set(every))


@pytest.fixture(scope="module")
def settings(tiny_path: object) -> QualitySettings:
    return QualitySettings(
        model=str(tiny_path), kv=("f16", "q8", "q2", "h4/f16", "f16/h4"), tokens=400, skip=330
    )


@pytest.fixture(scope="module")
def rows(settings: QualitySettings) -> list[QualityRow]:
    with Meter(10) as meter:
        return list(quality.run(replace(settings, hot=(0,)), meter))


def _row(rows: list[QualityRow], kv: str, hot: int = 128) -> QualityRow:
    (found,) = [row for row in rows if (row.kv, row.hot, row.sinks) == (kv, hot, 4)]
    return found


def test_f16_loses_nothing(rows: list[QualityRow]) -> None:
    row = _row(rows, "f16")
    assert row.kld_mean == pytest.approx(0, abs=1e-9)
    assert (row.top1, row.score_rms, row.bits) == (1.0, 0.0, 16.0)
    assert row.ppl == pytest.approx(row.f16_ppl)
    assert row.recall == row.f16_recall
    assert row.tokens == 399 - 330
    assert (row.technical_kld_mean, row.technical_top1) == (None, None)


def test_fewer_bits_lose_more(rows: list[QualityRow]) -> None:
    fine, coarse, baseline = (_row(rows, kv) for kv in ("q8", "q2", "h4"))
    assert fine.kld_mean < baseline.kld_mean < coarse.kld_mean
    assert fine.score_rms < baseline.score_rms < coarse.score_rms
    assert (baseline.versus, baseline.versus_low, baseline.versus_high) == (0, 0, 0)
    assert coarse.versus_low <= coarse.versus <= coarse.versus_high
    assert coarse.versus == pytest.approx(coarse.kld_mean - baseline.kld_mean)


def test_pairs_of_the_base_tiers_read_both_texts(
    rows: list[QualityRow], settings: QualitySettings
) -> None:
    read = {(row.kv, row.hot) for row in rows if row.technical_kld_mean is not None}
    assert read == {(kv, 128) for kv in ("h4", "hkivi4/turbo4u", "q8", "q2")}
    fine, coarse = (_row(rows, kv) for kv in ("q8", "q2"))
    assert fine.technical_kld_mean is not None
    assert coarse.technical_kld_mean is not None
    assert 0 < fine.technical_kld_mean < coarse.technical_kld_mean
    assert fine.technical_kld_mean != fine.kld_mean
    # It is the same measurement, of the other text.
    opened = quality.open_harness(settings)
    exact = opened.harness.exact(opened.texts[Text.TECHNICAL], skip=settings.skip)
    found = opened.harness.divergence(opened.harness.plan(Tiers(keys="q2", values="q2")), exact)
    assert coarse.technical_kld_mean == pytest.approx(float(found.kl.mean()))


def test_keys_and_values_alone(rows: list[QualityRow]) -> None:
    keys, values, both = (_row(rows, kv) for kv in ("h4/f16", "f16/h4", "h4"))
    assert keys.alone
    assert values.alone
    assert not both.alone
    assert (keys.value_bits, values.key_bits) == (16.0, 16.0)
    assert keys.bits == pytest.approx((both.key_bits + 16) / 2)
    assert keys.score_rms == pytest.approx(both.score_rms)
    assert values.score_rms == 0


def test_window_bits_count_every_tier(tiny_path: object) -> None:
    """A window of 128: all 4 + 60 + 63 tokens in f16, or 4 + 63 of them and a block of 64."""
    plain, mixed = (
        quality.window_bits(_plan(tiny_path, hot=hot), 131 if hot == 0 else 128) for hot in (256, 0)
    )
    assert plain == 16
    assert mixed == pytest.approx((67 * 16 + 64 * _plan(tiny_path, hot=0).cold_bits) / 131)


def _plan(tiny_path: object, *, hot: int) -> CachePlan:
    config = CacheConfig(hot=hot, keys="h4", values="q3", max_tokens=300, beyond_context=True)
    return resolve(config, network_of(str(tiny_path)).shape)


def test_scores_are_those_of_the_same_keys(settings: QualitySettings) -> None:
    """By the definition: scaled products of the recorded queries with decoded less exact keys."""
    import mlx.core as mx

    from kvcache import TwoTierKVCache

    opened = quality.open_harness(settings)
    harness = opened.harness
    exact = harness.exact(opened.texts[Text.ACTS], skip=settings.skip)
    plan = harness.plan(Tiers(keys="q3", values="f16", hot=0))
    errors = []
    for layer, (keys, queries) in enumerate(zip(exact.keys, exact.queries, strict=True)):
        cache = TwoTierKVCache(plan.layer(layer))
        cache.append(keys, keys)
        cold = slice(4, 4 + cache.ledger.cold)
        assert cache.ledger.cold > 300
        off = (cache.keys().astype(mx.float32) - keys.astype(mx.float32))[:, :, cold]
        grouped = mx.unflatten(queries, 1, (2, 3)).flatten(2, 3)  # [1, Hkv, G * L, D]
        errors.append(np.asarray(grouped @ off.swapaxes(2, 3)) / 4)
    expected = float(np.sqrt(np.mean([np.mean(error**2) for error in errors])))
    assert harness.score_error(plan, exact) == pytest.approx(expected, rel=0.02)


def test_scores_are_of_the_row_s_own_blocks(settings: QualitySettings) -> None:
    opened = quality.open_harness(settings)
    harness = opened.harness
    exact = harness.exact(opened.texts[Text.ACTS], skip=settings.skip)
    small, large = (
        harness.score_error(harness.plan(Tiers(keys="kivi2", values="f16", block=block)), exact)
        for block in (16, 64)
    )
    assert small < 0.95 * large


def _made(kv: str, bits: float, kld: float, versus: tuple[float, float]) -> QualityRow:
    return QualityRow(
        kv=kv,
        hot=128,
        sinks=4,
        bits=bits,
        key_bits=bits,
        value_bits=bits,
        window_bits=bits,
        kld_mean=kld,
        kld_median=kld,
        kld_p999=kld,
        top1=1.0,
        ppl=2.0,
        f16_ppl=2.0,
        score_rms=0.0,
        recall=1.0,
        f16_recall=1.0,
        tokens=9,
        versus=kld - 0.004,
        versus_low=versus[0],
        versus_high=versus[1],
    )


def test_the_front_is_what_nothing_beats() -> None:
    points = [(4.5, 2.0), (3.0, 9.0), (4.5, 1.5), (5.0, 1.7), (8.0, 0.1), (3.5, 9.0)]
    rows = [_made("q4", bits, kld, (0.0, 0.0)) for bits, kld in points]
    assert quality_view.best(rows) == [rows[1], rows[2], rows[4]]


def test_the_recommended_point_by_hand() -> None:
    rows = [
        _made("h4", 4.5, 0.004, (0, 0)),
        _made("hkivi4/turbo4u", 4.4, 0.002, (-0.003, -0.001)),
        _made("turbo3", 3.25, 0.005, (-0.001, 0.002)),
        _made("turbo4", 4.25, 0.0035, (-0.002, 0.001)),
        _made("hkivi4/turbo3u", 3.9, 0.003, (-0.003, -0.0001)),
        _made("q8", 8.5, 0.0001, (-0.005, -0.003)),
        _made("h4/f16", 10.2, 0.0039, (-0.001, 0.0)),
        _made("f16/h4", 10.2, 0.0003, (-0.005, -0.003)),
    ]
    best = quality_view.recommended([row for row in rows if not row.alone])
    small = quality_view.smallest([row for row in rows if not row.alone])
    assert best is not None
    assert small is not None
    assert (best.kv, small.kv) == ("hkivi4/turbo4u", "hkivi4/turbo3u")
    rows[1] = replace(rows[1], technical_kld_mean=0.5, technical_kld_p999=2.5, technical_top1=0.25)
    chosen = quality_view.tables(rows)[0]
    assert [row[:2] for row in chosen.rows] == [
        ("q8", "8.5"),
        ("h4", "4.5"),
        ("hkivi4/turbo4u (default)", "4.4"),
    ]
    assert [row[5:] for row in chosen.rows] == [
        ("", "", ""),
        ("", "", ""),
        ("0.500000", "2.500000", "0.250"),
    ]
    told = " ".join(quality_view.findings(rows))
    assert "Recommended: hkivi4/turbo4u (4.4 bits, 0.00200)" in told
    assert "-50.0% (difference -0.00300 to -0.00100" in told
    assert "keys alone lose 13.0 times what values lose" in told
    titles = [table.title for table in quality_view.tables(rows)]
    assert titles == [
        "Chosen codecs",
        "Keys and values together",
        "Keys alone, values in f16",
        "Values alone, keys in f16",
    ]
    (chart,) = quality_view.charts(rows)
    assert chart.series[2].points == [(4.4, 0.002)]
    assert list(chart.series[0].labels) == ["turbo3", "hkivi4/turbo3u", "hkivi4/turbo4u", "q8"]


def test_no_text_is_refused(tiny_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "FOLDER", text.FOLDER / "none")
    with pytest.raises(EmberError, match="source folder only"):
        quality.open_harness(QualitySettings(model=str(tiny_path)))


def test_the_tail_of_a_text_is_refused(tiny_path: object) -> None:
    with pytest.raises(EmberError, match="expected more than --skip 256"):
        quality.open_harness(QualitySettings(model=str(tiny_path), tokens=200))


# -- bits by layer --


def test_rows_of_so_many_bits(
    tiny_path: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_losses, "cache_folder", lambda: tmp_path)
    settings = QualitySettings(
        model=str(tiny_path), kv=("q8", "4.4"), varied=(), allocate=(3.1,), tokens=400, skip=330
    )
    with Meter(10) as meter:
        rows = {row.kv: row for row in quality.run(settings, meter)}
    coarse, fine = rows["3.1 bits by layer"], rows["4.4 bits by layer"]
    assert list(rows) == ["h4", "hkivi4/turbo4u", "q8", "3.1 bits by layer", "4.4 bits by layer"]
    assert coarse.bits == pytest.approx((coarse.key_bits + coarse.value_bits) / 2)
    assert 2.8 < coarse.bits <= 3.1
    assert 4.0 < fine.bits <= 4.4
    assert 0 < fine.kld_mean < coarse.kld_mean
    assert not fine.alone
    assert fine.technical_kld_mean is not None
    assert fine.score_rms < coarse.score_rms
    with monkeypatch.context() as patch:  # the table is made once
        patch.setattr(layer_losses, "measure", None)
        with Meter(10) as meter:
            again = {row.kv: row for row in quality.run(settings, meter)}
    assert again["4.4 bits by layer"] == fine


def test_the_time_that_a_table_takes_is_foretold(tiny_path: object) -> None:
    settings = QualitySettings(model=str(tiny_path))
    without, once = (
        quality.expected_seconds(each) for each in (settings, replace(settings, allocate=(4.0,)))
    )
    assert once > without + layer_losses.readings(2) * layer_losses.TOKENS * 0.001
