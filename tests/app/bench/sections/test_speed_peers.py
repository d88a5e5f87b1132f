"""Peers at their best."""

import os
from collections.abc import Sequence
from dataclasses import replace

import pytest

from app.bench.engines.case import Case, EngineName, LlamaCppSetting, Measurement, Setting
from app.bench.environment import physical_cores
from app.bench.sections import speed, speed_view
from kvcache import EmberError
from tests.app.bench.speed_cases import SETTINGS, Steps, alike, measurement

pytestmark = pytest.mark.usefixtures("memory")


@pytest.mark.parametrize(
    ("later", "runs", "short"),
    [((0.25, 0.25, 0.1, 0.1), 6, True), ((0.25, 0.125, 0.125, 0.125), 5, False)],
    ids=["never quiet", "quiet at last"],
)
def test_a_peer_below_its_own_trial_is_measured_again(
    monkeypatch: pytest.MonkeyPatch, later: tuple[float, ...], runs: int, short: bool
) -> None:
    seconds = {"llama.cpp": [0.25, *later, 0.25], "ember": [0.1] * 9}
    for_ember = len(seconds["ember"])

    def run(case: Case) -> Measurement:
        return measurement(1.0, seconds[case.engine.value].pop(0))

    monkeypatch.setattr(speed, "measure", run)
    monkeypatch.setattr(
        speed, "try_each", lambda _, settings: {settings[0]: measurement(1.0, 0.125)}
    )
    monkeypatch.setattr(speed, "_LLAMA_CPP_KV", ("q4_0",))
    monkeypatch.setattr(speed, "small_cases", lambda _: [])
    rows = list(speed.run(replace(SETTINGS, peers=True, depths=(0,), reps=3), Steps()))
    generated = next(row for row in rows if row.engine == "llama.cpp" and row.test == "tg3")
    assert generated.reps == runs
    assert generated.falls_short is short
    assert len(seconds["ember"]) == for_ember - 3
    told = [line for line in speed_view.findings(rows) if "in its trial" in line]
    expected = (
        "tg3 at depth 0: llama.cpp q4_0 gave 24.0 tok/s in its trial, 12.0 in the 6 runs after it."
    )
    assert "q4_0 24.0 (" in speed_view.findings(rows)[1]
    assert told == ([expected] if short else [])


def test_a_peer_that_fails_is_left_out_with_a_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail_for_peers(case: Case) -> Measurement:
        if case.engine is EngineName.EMBER:
            return measurement(1.0, 0.1)
        raise EmberError("not installed")

    def fail(case: Case, settings: Sequence[Setting]) -> dict[Setting, Measurement]:
        raise EmberError("not installed")

    monkeypatch.setattr(speed, "measure", fail_for_peers)
    monkeypatch.setattr(speed, "try_each", fail)
    rows = list(speed.run(replace(SETTINGS, peers=True), Steps()))
    assert {row.engine for row in rows} == {"ember"}
    assert capsys.readouterr().err.count("ember: llama.cpp q8_0 left out: not installed") == 2


def test_on_a_cpu_encoded_peers_are_left_out_where_they_take_minutes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(speed, "on_gpu", lambda: False)
    settings = replace(SETTINGS, peers=True)
    kinds = [
        [case.kv for case in speed.cases(settings, depth) if case.engine is EngineName.LLAMA_CPP]
        for depth in (4096, 4097)
    ]
    assert kinds == [["f16", "q8_0/f16", "q8_0", "q4_0"], ["f16"]]


def test_each_test_is_measured_with_the_setting_that_is_best_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Here flash attention reads prompts faster, and generates slower the deeper it is."""

    def seconds(case: Case, setting: Setting) -> Measurement:
        if not isinstance(setting, LlamaCppSetting):
            return measurement(1.0, 0.1)
        slower = 2 / setting.n_threads
        pp_s = slower * (1.0 if setting.flash_attn else 1.5) * 512 / setting.n_ubatch
        token_s = slower * (0.1 + 0.001 * case.depth * setting.flash_attn)
        return measurement(pp_s, *[token_s + 0.01 * (not setting.flash_attn)] * case.tg)

    def trial(case: Case, settings: Sequence[Setting]) -> dict[Setting, Measurement]:
        assert case.tg <= 16
        return {setting: seconds(case, setting) for setting in settings}

    def run(case: Case) -> Measurement:
        return seconds(case, case.setting) if case.setting else measurement(1.0, 0.1)

    monkeypatch.setattr(speed, "try_each", trial)
    monkeypatch.setattr(speed, "measure", run)
    settings = replace(SETTINGS, peers=True, threads=0, tg=40)
    rows = {
        (row.test, row.depth): row
        for row in speed.run(settings, Steps())
        if (row.engine, row.kv) == ("llama.cpp", "f16") and row.test in ("pp512", "tg40")
    }
    threads = max(physical_cores(), os.cpu_count() or 1)
    on, off = (f"flash_attn {each}, n_ubatch 512, n_threads {threads}" for each in ("on", "off"))
    assert {test: row.setting for test, row in rows.items()} == {
        ("pp512", 0): on,
        ("tg40", 0): on,
        ("pp512", 100): on,
        ("tg40", 100): off,
    }
    deep = rows["tg40", 100]
    assert deep.tps == pytest.approx(threads / 2 / 0.11)
    assert next(iter(deep.tried)) == off
    assert deep.tried[on] == pytest.approx(threads / 2 / 0.2)
    assert {name.split(",")[0] for name in deep.tried} == {"flash_attn on", "flash_attn off"}


def test_every_peer_row_names_the_settings_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU and on a GPU, in every group; ember's rows name none."""
    monkeypatch.setattr(speed, "measure", lambda case: measurement(1.0, *[0.1] * case.tg))
    monkeypatch.setattr(speed, "try_each", alike)
    for on_cpu in (True, False):
        monkeypatch.setattr(speed, "on_gpu", lambda here=on_cpu: not here)
        rows = list(speed.run(replace(SETTINGS, peers=True, short=True, threads=0), Steps()))
        peers = [row for row in rows if row.engine != "ember"]
        assert {row.engine for row in peers} == {"llama.cpp", "mlx-lm"}
        for row in peers:
            assert row.setting in row.tried
            assert all(tried > 0 for tried in row.tried.values())
            if row.engine == "llama.cpp":
                flash = {name.split(",")[0] for name in row.tried}
                needs_flash = row.kv in ("q8_0", "q4_0")
                assert len(flash) == (1 if needs_flash else 2)
                assert len({name.rsplit(" ", 1)[1] for name in row.tried}) > 1 or (
                    os.cpu_count() == 1
                )
        assert not any(row.tried or row.setting for row in rows if row.engine == "ember")


def test_where_one_form_of_a_peer_dies_the_other_is_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def trial(case: Case, settings: Sequence[Setting]) -> dict[Setting, Measurement]:
        first = settings[0]
        if isinstance(first, LlamaCppSetting) and first.flash_attn:
            raise EmberError("exit code -11")
        return alike(case, settings)

    monkeypatch.setattr(speed, "try_each", trial)
    monkeypatch.setattr(speed, "measure", lambda case: measurement(1.0, *[0.1] * case.tg))
    rows = [
        row
        for row in speed.run(replace(SETTINGS, peers=True), Steps())
        if row.engine == "llama.cpp"
    ]
    assert {row.kv for row in rows} == {"f16", "q8_0/f16"}
    assert all(row.setting.startswith("flash_attn off") for row in rows)
