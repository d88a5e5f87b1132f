import json
from pathlib import Path

import pytest

from app import cli
from app.bench import speed
from app.bench.case import Case, EngineName, Measurement
from app.bench.environment import environment
from kvcache import EmberError

CONFIG = speed.SpeedConfig(
    model="m.gguf",
    kv=("f16",),
    backend="cpu",
    threads=2,
    depths=(0, 100),
    pp=512,
    tg=3,
    reps=2,
    peers=False,
)
CASE = speed.cases(CONFIG, 100)[0]


def _measurement(pp_s: float, *token_s: float) -> Measurement:
    return Measurement(
        backend="cpu",
        threads=2,
        pp_s=pp_s,
        token_s=token_s,
        kv_bytes=1000,
        peak_rss_bytes=int(pp_s * 1e6),
    )


def test_rows_quote_medians_by_hand() -> None:
    measurements = [
        _measurement(2.0, 0.1, 0.1, 0.2),
        _measurement(1.0, 0.1, 0.1, 0.1),
        _measurement(4.0, 0.2, 0.2, 0.2),
    ]
    prompt, tokens = speed.rows_of(CASE, measurements)
    assert (prompt.test, tokens.test, prompt.depth) == ("pp512", "tg3", 100)
    assert prompt.tps == pytest.approx(256)  # of 256, 512, 128
    assert prompt.tps_sd == pytest.approx(195.52, abs=0.01)
    assert tokens.tps == pytest.approx(7.5)  # of 7.5, 10, 5
    assert tokens.p99_over_median == pytest.approx(2.0)
    assert prompt.ttft_s == pytest.approx(2.1)
    assert prompt.peak_rss_bytes == 4_000_000


def test_one_repetition_has_no_spread() -> None:
    prompt, _ = speed.rows_of(CASE, [_measurement(2.0, 0.1)])
    assert prompt.tps_sd == 0.0


def test_engines_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[tuple[str, int, int]] = []
    monkeypatch.setattr(speed, "measure", lambda case: _measurement(1.0, 0.1))
    config = speed.SpeedConfig(**{**CONFIG.__dict__, "peers": True})
    rows = speed.run(config, lambda case, rep: order.append((case.engine.value, case.depth, rep)))
    at_start = [(engine, rep) for engine, depth, rep in order if depth == 0]
    one_round = ["ember", "llama.cpp", "llama.cpp", "llama.cpp", "mlx-lm"]
    assert at_start == [(engine, rep) for rep in (0, 1) for engine in one_round]
    assert ("mlx-lm", 100, 0) not in order
    assert len(rows) == 2 * (5 + 4)


def test_a_peer_that_fails_is_left_out_with_a_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail_for_peers(case: Case) -> Measurement:
        if case.engine is EngineName.EMBER:
            return _measurement(1.0, 0.1)
        raise EmberError("not installed")

    monkeypatch.setattr(speed, "measure", fail_for_peers)
    config = speed.SpeedConfig(**{**CONFIG.__dict__, "peers": True})
    rows = speed.run(config, lambda case, rep: None)
    assert {row.engine for row in rows} == {"ember"}
    assert capsys.readouterr().err.count("ember: llama.cpp q8_0 left out: not installed") == 2


def test_a_failing_ember_is_an_error(tmp_path: Path) -> None:
    case = Case(**{**CASE.__dict__, "model": str(tmp_path / "none.gguf")})
    with pytest.raises(EmberError, match=r"measurement of ember failed.*none\.gguf"):
        speed.measure(case)


def test_json_keeps_the_contract(tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--pp", "40", "--tg", "5", "--depths", "0,30", "--reps", "2", "--threads", "1"]
    flags += ["--kv", "f16"]
    code = cli.run(["bench", "speed", "-m", str(tiny_path), "--json", *flags])
    found = json.loads(capsys.readouterr().out)
    assert code == 0
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


def test_mlx_lm_computes_the_same_network(tiny_path: Path) -> None:
    import mlx.core as mx

    from app.bench.mlx_lm_case import _as_mlx_lm
    from models import load

    ours = load(tiny_path).model
    ids = mx.array([[5, 300, 17, 2]])
    difference = mx.abs(_as_mlx_lm(ours)(ids) - ours(ids)).max()
    assert float(difference) < 2e-3 * float(mx.abs(ours(ids)).max())


def test_mlx_lm_is_measured(tiny_path: Path) -> None:
    case = Case(
        engine=EngineName.MLX_LM,
        model=str(tiny_path),
        kv="f32",
        backend="auto",
        threads=0,
        depth=3,
        pp=7,
        tg=4,
    )
    found = speed.measure(case)
    assert len(found.token_s) == 4
    assert found.kv_bytes in (384 * 14, 768 * 14)


@pytest.mark.parametrize("depths", ["", "a", "1,-2"])
def test_bad_depths_are_bad_usage(depths: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.run(["bench", "--depths", depths])
    assert exit_.value.code == 2
    assert "expected numbers such as 0,2048" in capsys.readouterr().err
