import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from app import cli
from app.bench import schema
from app.bench.engines import process
from app.bench.engines.case import NO_CACHE, Case, EngineName, Measurement
from app.bench.environment import environment
from app.bench.sections import speed, speed_rows, speed_view
from kvcache import EmberError
from tests.app.bench.speed_cases import CASE, SETTINGS, Steps, alike, measurement

pytestmark = pytest.mark.usefixtures("memory")


def test_rows_quote_medians_by_hand() -> None:
    measurements = [
        measurement(2.0, 0.1, 0.1, 0.2),
        measurement(1.0, 0.1, 0.1, 0.1),
        measurement(4.0, 0.2, 0.2, 0.2),
    ]
    prompt, tokens = speed_rows.rows_of(CASE, measurements)
    assert (prompt.test, tokens.test, prompt.depth) == ("pp512", "tg3", 100)
    assert prompt.tps == pytest.approx(256)  # of 256, 512, 128
    assert prompt.tps_mean == pytest.approx(298.67, abs=0.01)
    assert prompt.tps_sd == pytest.approx(195.52, abs=0.01)
    assert tokens.tps == pytest.approx(7.5)  # of 7.5, 10, 5
    assert tokens.p99_over_median == pytest.approx(2.0)
    assert prompt.ttft_s == pytest.approx(2.1)
    assert prompt.peak_rss_bytes == 4_000_000
    assert prompt.kv_token_bytes == 2.0  # 1230 of 100 + 512 + 3 tokens
    assert prompt.model == "m"


def test_rows_of_a_batch_count_all_its_tokens() -> None:
    prompt, _ = speed_rows.rows_of(replace(CASE, batch=3), [measurement(2.0, 0.1)])
    assert prompt.tps == pytest.approx(768)
    assert prompt.tps_sd == 0.0


def test_the_short_protocol_adds_prompt_and_tokens_by_hand() -> None:
    times = [0.5] * 10 + [0.25] * 90
    rows = speed_rows.short_rows_of(CASE, [measurement(1.0, *times)])
    assert [row.test for row in rows] == ["gen10", "gen50", "gen100"]
    assert [row.seconds for row in rows] == pytest.approx([6.0, 16.0, 28.5])
    assert rows[1].tps == pytest.approx(50 / 16)


def test_the_short_protocol_goes_without_a_cache_too() -> None:
    found = speed.short_cases(replace(SETTINGS, kv=("h4", "f16")))
    assert [case.kv for case in found] == [NO_CACHE, "f16", "h4"]


def test_engines_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[tuple[str, int]] = []

    def note(case: Case) -> Measurement:
        order.append((case.engine.value, case.depth))
        return measurement(1.0, 0.1)

    monkeypatch.setattr(speed, "measure", note)
    monkeypatch.setattr(speed, "try_each", alike)
    steps = Steps()
    rows = list(speed.run(replace(SETTINGS, peers=True), steps))
    at_start = [engine for engine, depth in order if depth == 0]
    one_round = ["ember", *["llama.cpp"] * 4]
    # mlx-lm, slow and steady, runs once, in a smaller test that the others do as well.
    small = ["ember", "llama.cpp", *["mlx-lm"] * 4, "ember", "llama.cpp"]
    assert at_start == [*one_round, *one_round, *small]
    assert ("mlx-lm", 100) not in order
    assert len(rows) == 2 * (5 + 5 + 6)
    assert rows[-1].settings.startswith("mlx-lm 0.")
    assert [row.test for row in rows[-2:]] == ["pp128", "tg16"]
    runs = [label for label in steps.labels if label.endswith(("run 1", "run 2"))]
    assert runs[0] == "speed: ember f16 at depth 0, run 1"
    assert len(runs) == len(order)
    # Both forms of the two caches with f16 values, then one of the others and of mlx-lm.
    trials = [label for label in steps.labels if label.endswith("trials")]
    assert len(trials) == 2 * (2 * 2 + 2) + 2 + 4
    assert trials[0] == "speed: llama.cpp f16 at depth 0, trials"


def test_long_cases_are_repeated_less() -> None:
    reps = [
        speed._reps(replace(SETTINGS, reps=3), replace(CASE, depth=depth))
        for depth in (0, 8000, 30_000)
    ]
    assert reps == [3, 2, 2]
    assert speed._reps(replace(SETTINGS, reps=1), replace(CASE, depth=30_000)) == 1


def test_one_table_has_all_engines_and_depths() -> None:
    rows = [
        row
        for depth in (0, 100)
        for kv in ("f16", "h4")
        for row in speed_rows.rows_of(
            replace(CASE, kv=kv, depth=depth), [measurement(2.0, 0.1, 0.1, 0.1)]
        )
    ]
    table = speed_view.tables(rows)[0]
    assert table.columns == (
        "engine",
        "kv",
        "pp512",
        "tg3",
        "tg3 at 100",
        "KV MB at 100",
        "peak RSS MB",
    )
    assert table.rows[1] == ("ember", "h4", "256", "10.0", "10.0", "0.00", "2")
    assert "2 threads" in table.note
    assert "ember: 0.1.0, defaults" in table.note


def test_generation_is_shown_as_a_share_of_what_the_memory_gives() -> None:
    memory = speed.reading(SETTINGS)
    found = [measurement(1.0, 0.125, 0.125, 0.125)]
    reading, writing = map(memory.shown, speed_rows.rows_of(CASE, found))
    assert reading.read_share == 0
    # 8 tokens a second of 8,000 bytes of weights and 1,230 of cache
    assert writing.read_share == pytest.approx(8 * 9230 / 100_000)
    rows = speed_rows.rows_of(replace(CASE, batch=4), found)
    assert memory.shown(rows[1]).read_share == writing.read_share
    others = speed_rows.rows_of(replace(CASE, engine=EngineName.MLX_LM), found)
    assert memory.shown(others[1]).read_share == 0
    table = speed_view.tables([reading, writing])[-1]
    assert table.rows[0][table.columns.index("of bandwidth")] == "74%"


def test_an_interrupt_keeps_what_was_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Case] = []

    def stop_at_third(case: Case) -> Measurement:
        calls.append(case)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measurement(1.0, 0.1)

    monkeypatch.setattr(speed, "measure", stop_at_third)
    rows: list[speed_rows.SpeedRow] = []
    with pytest.raises(KeyboardInterrupt):
        rows.extend(speed.run(replace(SETTINGS, kv=("f16", "q8")), Steps()))
    assert [(row.kv, row.test, row.reps) for row in rows] == [
        ("f16", "pp512", 1),
        ("f16", "tg3", 1),
        ("q8", "pp512", 1),
        ("q8", "tg3", 1),
    ]


def test_a_failing_ember_is_an_error(tmp_path: Path) -> None:
    case = replace(CASE, model=str(tmp_path / "none.gguf"))
    with pytest.raises(EmberError, match=r"measurement of ember failed.*none\.gguf"):
        process.measure(case)


def test_json_keeps_the_contract(tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--pp", "40", "--tg", "5", "--depths", "0,30", "--reps", "1", "--threads", "1"]
    flags += ["--kv", "f16"]
    code = cli.run(["bench", "speed", "-m", str(tiny_path), "--json", *flags])
    found = json.loads(capsys.readouterr().out)
    assert code == 0
    jsonschema.validate(found, schema.make())
    assert found["schema"] == 1
    assert found["env"]["mlx"] == environment()["mlx"]
    assert [(row["test"], row["depth"]) for row in found["rows"]] == [
        ("pp40", 0),
        ("tg5", 0),
        ("pp40", 30),
        ("tg5", 30),
    ]
    for row in found["rows"]:
        assert (row["engine"], row["kv"], row["threads"]) == ("ember", "f16", 1)
        assert row["tps"] > 0
        # 3 layers * 2 (K, V) * 2 KV heads * 16 dims * 2 bytes
        assert row["kv_bytes"] == 384 * (row["depth"] + 45)
        assert row["peak_rss_bytes"] > 10**7


@pytest.mark.parametrize("depths", ["", "a", "1,-2"])
def test_bad_depths_are_bad_usage(depths: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["bench", "speed", "--depths", depths]) == 2
    assert "expected numbers such as 0,2048" in capsys.readouterr().err


def test_a_flag_of_another_section_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["bench", "memory", "--pp", "3"]) == 2
    assert "--pp" in capsys.readouterr().err


def test_the_view_says_which_setting_each_figure_has() -> None:
    base = speed_rows.rows_of(replace(CASE, depth=0), [measurement(2.0, 0.1)])
    peers = [
        replace(row, engine="llama.cpp", depth=depth, setting=setting, tried=tried)
        for depth, setting, tried in (
            (0, "flash_attn on, n_threads 2", {"flash_attn on, n_threads 2": 9.0}),
            (100, "flash_attn off, n_threads 2", {"flash_attn off, n_threads 1": 7.0}),
        )
        for row in base
    ]
    together, *_, settings = speed_view.tables([*base, *peers])
    assert together.rows[1][2:5] == ("256 a", "30.0 a", "30.0 b")
    assert "each figure at the best of flash_attn on/off, n_threads 1/2." in together.note
    assert together.note.endswith("a: flash_attn on, n_threads 2. b: flash_attn off, n_threads 2.")
    assert settings.rows[0][-1] == "flash_attn on, n_threads 2: 9.00"
    assert "(flash_attn on, n_threads 2)" in speed_view.findings([*base, *peers])[0]
