from dataclasses import replace
from pathlib import Path

import pytest

from app.bench.meter import Meter
from app.bench.sections import allocate, quality
from app.bench.sections.harness import Tiers
from app.bench.sections.quality import Opened
from app.bench.sections.text import Text
from app.bench.settings import QualitySettings
from kvcache.allocation import Losses


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(allocate, "cache_folder", lambda: tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def opened(tiny_path: object) -> Opened:
    settings = QualitySettings(model=str(tiny_path), tokens=400, skip=330)
    return quality.open_harness(settings)


def _losses(opened: Opened) -> Losses:
    ids, path = opened.texts[Text.CALIBRATION], allocate.kept(opened.identity, opened.harness)
    with Meter(1) as meter:
        return allocate.losses(opened.harness, ids, path, meter, 0.1)


def test_a_layer_loses_what_it_loses_alone(opened: Opened) -> None:
    found = _losses(opened)
    layers = opened.harness.model.shape.layers
    assert tuple(found.keys) == allocate.KEYS
    assert tuple(found.values) == allocate.VALUES
    by_layer = tuple("f16/trellis3" if at == 1 else "f16/f16" for at in range(layers))
    plan = opened.harness.plan(Tiers(keys="f16", values="f16", by_layer=by_layer))
    exact = opened.harness.exact(opened.texts[Text.CALIBRATION], skip=allocate.SKIP)
    alone = float(opened.harness.divergence(plan, exact).kl.mean())
    assert found.values["trellis3"][1] == pytest.approx(alone)
    assert alone > 0
    # Finer ones lose a share of it, the same in every layer.
    shares = [
        fine / coarse
        for fine, coarse in zip(found.values["trellis4"], found.values["trellis3"], strict=True)
    ]
    assert shares == pytest.approx([shares[0]] * layers)
    assert shares[0] < 1


def test_it_is_measured_once(opened: Opened, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = _losses(opened)
    with monkeypatch.context() as patch:
        patch.setattr(opened.harness, "exact", None)  # is not asked again
        assert _losses(opened) == found
    (kept,) = (folder / "allocation").iterdir()
    for damaged in ("", "[]", "{}", kept.read_text()[:-40], '{"keys": {}, "values": {}}'):
        kept.write_text(damaged)
        assert _losses(opened) == found
        assert list((folder / "allocation").iterdir()) == [kept]


def test_rows_to_measure_make_no_other_table(tiny_path: object, opened: Opened) -> None:
    """It is kept for all of them, whatever they read and score."""
    settings = QualitySettings(model=str(tiny_path), tokens=1100, skip=1050)
    found, other = (
        opened.texts[Text.CALIBRATION],
        quality.open_harness(settings).texts[Text.CALIBRATION],
    )
    assert len(found) == allocate.TOKENS
    assert list(found) == list(other)
    exact = opened.harness.exact(found, skip=allocate.SKIP)
    plan = opened.harness.plan(Tiers(keys="hkivi2", values="f16"))
    scored = opened.harness.divergence(plan, exact).kl
    assert len(scored) == allocate.TOKENS - allocate.SKIP - 1


def test_keys_that_are_rounded_plainly_have_a_table_of_their_own(
    tiny_path: object, opened: Opened, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBER_CALIBRATE", "0")
    plain = quality.open_harness(QualitySettings(model=str(tiny_path), tokens=400, skip=330))
    assert opened.harness.metric is not None
    assert plain.harness.metric is None
    paths = [allocate.kept(each.identity, each.harness) for each in (opened, plain)]
    assert len(set(paths)) == 2
    assert paths[0] == folder / "allocation" / f"{opened.identity}.json"


def test_rows_of_so_many_bits(tiny_path: object) -> None:
    settings = QualitySettings(
        model=str(tiny_path), kv=("q8",), varied=(), allocate=(3.1, 4.4), tokens=400, skip=330
    )
    with Meter(10) as meter:
        rows = {row.kv: row for row in quality.run(settings, meter)}
    coarse, fine = rows["3.1 bits by layer"], rows["4.4 bits by layer"]
    assert coarse.bits == pytest.approx((coarse.key_bits + coarse.value_bits) / 2)
    assert 2.8 < coarse.bits <= 3.1
    assert 4.0 < fine.bits <= 4.4
    assert 0 < fine.kld_mean < coarse.kld_mean
    assert not fine.alone
    assert fine.technical_kld_mean is not None
    assert fine.score_rms < coarse.score_rms


def test_the_time_that_it_takes_is_foretold(tiny_path: object) -> None:
    settings = QualitySettings(model=str(tiny_path))
    without, once = (
        quality.expected_seconds(each) for each in (settings, replace(settings, allocate=(4.0,)))
    )
    assert once > without + allocate.readings(2) * allocate.TOKENS * 0.001
