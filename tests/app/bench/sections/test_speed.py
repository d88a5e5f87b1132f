import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from app import cli
from app.bench import schema
from app.bench.engines import process, tuning
from app.bench.engines.case import (
    NO_CACHE,
    Case,
    EngineName,
    LlamaCppSetting,
    Measurement,
    MlxLmSetting,
    Setting,
)
from app.bench.engines.llama_cpp_bytes import kv_bytes
from app.bench.environment import environment, physical_cores
from app.bench.meter import Meter
from app.bench.sections import speed, speed_rows, speed_view
from app.bench.settings import SpeedSettings
from kvcache import EmberError

SETTINGS = SpeedSettings(
    model="/models/m.gguf",
    kv=("f16",),
    backend="cpu",
    threads=2,
    depths=(0, 100),
    pp=512,
    tg=3,
    reps=2,
)
CASE = speed.cases(SETTINGS, 100)[0]


class _Steps(Meter):
    """Keeps the labels, shows nothing."""

    def __init__(self) -> None:
        self.labels: list[str] = []

    @contextlib.contextmanager
    def step(self, label: str, seconds: float) -> Iterator[None]:
        assert seconds > 0
        self.labels.append(label)
        yield


def _measurement(pp_s: float, *token_s: float) -> Measurement:
    return Measurement(
        backend="cpu",
        threads=2,
        pp_s=pp_s,
        token_s=token_s,
        kv_bytes=1230,
        peak_rss_bytes=int(pp_s * 1e6),
    )


def test_rows_quote_medians_by_hand() -> None:
    measurements = [
        _measurement(2.0, 0.1, 0.1, 0.2),
        _measurement(1.0, 0.1, 0.1, 0.1),
        _measurement(4.0, 0.2, 0.2, 0.2),
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
    prompt, _ = speed_rows.rows_of(replace(CASE, batch=3), [_measurement(2.0, 0.1)])
    assert prompt.tps == pytest.approx(768)
    assert prompt.tps_sd == 0.0


def test_the_short_protocol_adds_prompt_and_tokens_by_hand() -> None:
    times = [0.5] * 10 + [0.25] * 90
    rows = speed_rows.short_rows_of(CASE, [_measurement(1.0, *times)])
    assert [row.test for row in rows] == ["gen10", "gen50", "gen100"]
    assert [row.seconds for row in rows] == pytest.approx([6.0, 16.0, 28.5])
    assert rows[1].tps == pytest.approx(50 / 16)


def test_the_short_protocol_goes_without_a_cache_too() -> None:
    found = speed.short_cases(replace(SETTINGS, kv=("h4", "f16")))
    assert [case.kv for case in found] == [NO_CACHE, "f16", "h4"]


def test_llama_cpp_gets_one_core_to_all() -> None:
    case = replace(CASE, engine=EngineName.LLAMA_CPP, kv="f16", threads=0)
    found = tuning.settings_of(case, on_cpu=True)
    threads = {each.n_threads for each in found if isinstance(each, LlamaCppSetting)}
    assert threads >= {1, physical_cores(), os.cpu_count()}
    assert found[0] == LlamaCppSetting(flash_attn=True, n_threads=physical_cores())


def test_engines_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[tuple[str, int]] = []

    def note(case: Case) -> Measurement:
        order.append((case.engine.value, case.depth))
        return _measurement(1.0, 0.1)

    monkeypatch.setattr(speed, "measure", note)
    monkeypatch.setattr(speed, "try_each", _alike)
    steps = _Steps()
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
        return _measurement(1.0, seconds[case.engine.value].pop(0))

    monkeypatch.setattr(speed, "measure", run)
    monkeypatch.setattr(
        speed, "try_each", lambda _, settings: {settings[0]: _measurement(1.0, 0.125)}
    )
    monkeypatch.setattr(speed, "_LLAMA_CPP_KV", ("q4_0",))
    monkeypatch.setattr(speed, "small_cases", lambda _: [])
    rows = list(speed.run(replace(SETTINGS, peers=True, depths=(0,), reps=3), _Steps()))
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


def test_one_table_has_all_engines_and_depths() -> None:
    rows = [
        row
        for depth in (0, 100)
        for kv in ("f16", "h4")
        for row in speed_rows.rows_of(
            replace(CASE, kv=kv, depth=depth), [_measurement(2.0, 0.1, 0.1, 0.1)]
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


def test_an_interrupt_keeps_what_was_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Case] = []

    def stop_at_third(case: Case) -> Measurement:
        calls.append(case)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return _measurement(1.0, 0.1)

    monkeypatch.setattr(speed, "measure", stop_at_third)
    rows: list[speed_rows.SpeedRow] = []
    with pytest.raises(KeyboardInterrupt):
        rows.extend(speed.run(replace(SETTINGS, kv=("f16", "q8")), _Steps()))
    assert [(row.kv, row.test, row.reps) for row in rows] == [
        ("f16", "pp512", 1),
        ("f16", "tg3", 1),
        ("q8", "pp512", 1),
        ("q8", "tg3", 1),
    ]


def test_a_peer_that_fails_is_left_out_with_a_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail_for_peers(case: Case) -> Measurement:
        if case.engine is EngineName.EMBER:
            return _measurement(1.0, 0.1)
        raise EmberError("not installed")

    def fail(case: Case, settings: Sequence[Setting]) -> dict[Setting, Measurement]:
        raise EmberError("not installed")

    monkeypatch.setattr(speed, "measure", fail_for_peers)
    monkeypatch.setattr(speed, "try_each", fail)
    rows = list(speed.run(replace(SETTINGS, peers=True), _Steps()))
    assert {row.engine for row in rows} == {"ember"}
    assert capsys.readouterr().err.count("ember: llama.cpp q8_0 left out: not installed") == 2


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


def _tiny_case(path: Path, engine: EngineName, kv: str, **more: int) -> Case:
    sizes = {"threads": 1, "depth": 3, "pp": 7, "tg": 4} | more
    return Case(engine=engine, model=str(path), kv=kv, backend="auto", **sizes)


def test_a_batch_and_no_cache_are_measured(tiny_path: Path) -> None:
    found = process.measure(_tiny_case(tiny_path, EngineName.EMBER, NO_CACHE, batch=2))
    assert len(found.token_s) == 4
    assert found.kv_bytes == 2 * 384 * 14


def test_no_cache_gives_the_tokens_that_a_cache_gives(tiny_path: Path) -> None:
    from app.bench.engines.ember_case import Run
    from kvcache import CacheConfig, HotDtype, make_prompt_cache
    from models import load

    model = load(tiny_path).model
    config = CacheConfig(hot_dtype=HotDtype.F32, keys="f16", values="f16")
    seen = []
    for kv in ("f16", NO_CACHE):
        case = _tiny_case(tiny_path, EngineName.EMBER, kv, batch=2)
        run = Run(case, model, make_prompt_cache(model, config), step=5)
        run.read(0, 7)
        for _ in range(4):
            run.advance()
        seen.append(run.seen.tolist())
    assert seen[0] == seen[1]
    assert len(seen[0][1]) == 11


def test_llama_cpps_bytes_by_hand() -> None:
    metadata = {
        "llama.block_count": "30",
        "llama.embedding_length": "576",
        "llama.attention.head_count": "9",
        "llama.attention.head_count_kv": "3",
    }
    case = _tiny_case(Path("m"), EngineName.LLAMA_CPP, "q8_0")
    # 2 * 30 layers * 3 KV heads * 64 dims * 8.5 bits, of 3 + 7 + 4 tokens
    assert kv_bytes(metadata, case) == 2 * 30 * 3 * 64 * 14 * 17 // 16


def test_mlx_lm_computes_the_same_network(tiny_path: Path) -> None:
    import mlx.core as mx

    from app.bench.engines.mlx_lm_case import _as_mlx_lm
    from models import load

    ours = load(tiny_path).model
    ids = mx.array([[5, 300, 17, 2]])
    difference = mx.abs(_as_mlx_lm(ours, mx.float32)(ids) - ours(ids)).max()
    assert float(difference) < 2e-3 * float(mx.abs(ours(ids)).max())


def test_mlx_lm_is_measured(tiny_path: Path) -> None:
    found = process.measure(_peer_case(tiny_path, EngineName.MLX_LM, "KVCache"))
    assert len(found.token_s) == 4
    assert found.kv_bytes in (384 * 14, 768 * 14)


def test_mlx_lms_other_caches_hold_what_they_should() -> None:
    import mlx.core as mx

    from app.bench.engines.mlx_lm_case import _cache, _held_bytes

    tokens = mx.ones((1, 3, 150, 64), mx.float16)
    found = {}
    for kv in ("KVCache", "QuantizedKVCache 4", "RotatingKVCache"):
        case = _tiny_case(Path("m"), EngineName.MLX_LM, kv)
        cache = _cache(case, MlxLmSetting(group_size=64))
        cache.update_and_fetch(tokens, tokens)
        one = tokens[:, :, :1]
        cache.update_and_fetch(one, one)
        found[kv] = _held_bytes(cache)
    assert found["KVCache"] == 2 * 3 * 151 * 64 * 2
    # codes, then a scale and a bias of two bytes each for 64
    assert found["QuantizedKVCache 4"] == 2 * 3 * 151 * (32 + 4)
    assert found["RotatingKVCache"] == 2 * 3 * 128 * 64 * 2


@pytest.mark.parametrize("depths", ["", "a", "1,-2"])
def test_bad_depths_are_bad_usage(depths: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["bench", "speed", "--depths", depths]) == 2
    assert "expected numbers such as 0,2048" in capsys.readouterr().err


def test_a_flag_of_another_section_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["bench", "memory", "--pp", "3"]) == 2
    assert "--pp" in capsys.readouterr().err


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


# -- peers at their best --


def _alike(case: Case, settings: Sequence[Setting]) -> dict[Setting, Measurement]:
    return {setting: _measurement(1.0, *[0.1] * case.tg) for setting in settings}


def _peer_case(path: Path, engine: EngineName, kv: str, **more: int) -> Case:
    case = _tiny_case(path, engine, kv, **more)
    return replace(case, setting=tuning.settings_of(case, on_cpu=True)[0])


def test_each_test_is_measured_with_the_setting_that_is_best_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Here flash attention reads prompts faster, and generates slower the deeper it is."""

    def seconds(case: Case, setting: Setting) -> Measurement:
        if not isinstance(setting, LlamaCppSetting):
            return _measurement(1.0, 0.1)
        slower = 2 / setting.n_threads
        pp_s = slower * (1.0 if setting.flash_attn else 1.5) * 512 / setting.n_ubatch
        token_s = slower * (0.1 + 0.001 * case.depth * setting.flash_attn)
        return _measurement(pp_s, *[token_s + 0.01 * (not setting.flash_attn)] * case.tg)

    def trial(case: Case, settings: Sequence[Setting]) -> dict[Setting, Measurement]:
        assert case.tg <= 16
        return {setting: seconds(case, setting) for setting in settings}

    def run(case: Case) -> Measurement:
        return seconds(case, case.setting) if case.setting else _measurement(1.0, 0.1)

    monkeypatch.setattr(speed, "try_each", trial)
    monkeypatch.setattr(speed, "measure", run)
    settings = replace(SETTINGS, peers=True, threads=0, tg=40)
    rows = {
        (row.test, row.depth): row
        for row in speed.run(settings, _Steps())
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
    monkeypatch.setattr(speed, "measure", lambda case: _measurement(1.0, *[0.1] * case.tg))
    monkeypatch.setattr(speed, "try_each", _alike)
    for on_cpu in (True, False):
        monkeypatch.setattr(speed, "on_gpu", lambda here=on_cpu: not here)
        rows = list(speed.run(replace(SETTINGS, peers=True, short=True, threads=0), _Steps()))
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
        return _alike(case, settings)

    monkeypatch.setattr(speed, "try_each", trial)
    monkeypatch.setattr(speed, "measure", lambda case: _measurement(1.0, *[0.1] * case.tg))
    rows = [
        row
        for row in speed.run(replace(SETTINGS, peers=True), _Steps())
        if row.engine == "llama.cpp"
    ]
    assert {row.kv for row in rows} == {"f16", "q8_0/f16"}
    assert all(row.setting.startswith("flash_attn off") for row in rows)


def test_a_setting_that_cannot_run_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    case = replace(CASE, engine=EngineName.LLAMA_CPP, kv="f16")
    settings = tuning.settings_of(case, on_cpu=True)
    fast, slow = _measurement(1.0, 0.1), _measurement(2.0, 0.1)
    given = [None, slow, fast, *[None] * (len(settings) - 3)]
    monkeypatch.setattr(tuning, "measure_each", lambda cases: given)
    found = tuning.try_each(case, settings)
    tried = tuning.ranked(case, found, lambda case, one: [1 / one.pp_s])
    assert tried == ({settings[2]: 1.0, settings[1]: 0.5},)
    assert tuning.ranked(case, {}, lambda case, one: [1.0]) == ()


@pytest.mark.parametrize(
    ("pp", "ubatches"), [(16, {512}), (129, {128, 512}), (512, {128, 256, 512}), (4096, None)]
)
def test_micro_batches_that_change_nothing_are_not_tried(
    pp: int, ubatches: set[int] | None
) -> None:
    case = replace(CASE, engine=EngineName.LLAMA_CPP, kv="q8_0", pp=pp)
    found = {
        setting.n_ubatch
        for setting in tuning.settings_of(case, on_cpu=True)
        if isinstance(setting, LlamaCppSetting)
    }
    assert found == (ubatches or {128, 256, 512, 2048})


def test_threads_that_a_user_asks_for_are_the_peers_too() -> None:
    case = replace(CASE, engine=EngineName.LLAMA_CPP, kv="f16", threads=3)
    for setting in tuning.settings_of(case, on_cpu=True):
        assert isinstance(setting, LlamaCppSetting)
        assert setting.n_threads == 3


def test_a_case_survives_json() -> None:
    for engine, kv in ((EngineName.LLAMA_CPP, "f16"), (EngineName.MLX_LM, "QuantizedKVCache 4")):
        case = replace(CASE, engine=engine, kv=kv)
        for setting in tuning.settings_of(case, on_cpu=False):
            one = replace(case, setting=setting)
            assert Case.from_json(json.loads(json.dumps(one.as_json()))) == one
    assert Case.from_json(CASE.as_json()) == CASE


def test_settings_of_one_case_are_measured_in_one_process(tiny_path: Path) -> None:
    case = _tiny_case(tiny_path, EngineName.MLX_LM, "QuantizedKVCache 8")
    settings = [MlxLmSetting(prefill_step_size=3), MlxLmSetting(group_size=32)]
    plain = replace(case, kv="KVCache")
    found = process.measure_each(
        [replace(plain, setting=settings[0]), replace(case, setting=settings[1])]
    )
    assert found[0] is not None
    assert len(found[0].token_s) == 4
    assert found[1] is None  # heads of 16 have no groups of 32


def test_the_view_says_which_setting_each_figure_has() -> None:
    base = speed_rows.rows_of(replace(CASE, depth=0), [_measurement(2.0, 0.1)])
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
