import json
from dataclasses import replace
from pathlib import Path

import pytest

from app import cli
from app.bench.meter import Meter
from app.bench.sections import load, load_view
from app.bench.sections.load import LoadRow
from app.bench.settings import LoadSettings
from kvcache import EmberError

ROW = LoadRow(
    engine="ember",
    model="m",
    backend="cpu",
    threads=2,
    file_bytes=1_000_000_000,
    load_s=0.25,
    first_token_s=1.125,
    peak_rss_bytes=1_130_000_000,
    kv_bytes=47_000_000,
    second_bytes=70_000_000,
    reps=5,
    settings="0.1.0, defaults",
)


def _run(settings: LoadSettings) -> list[LoadRow]:
    with Meter(load.expected_seconds(settings)) as meter:
        return list(load.run(settings, meter))


def test_starts_are_measured_and_a_peer_that_is_not_installed_left_out(
    tiny_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(_without_llama_cpp(tiny_path.parent)), prepend=":")
    settings = LoadSettings(model=str(tiny_path), threads=1, reps=1, peers=True)
    (row,) = _run(settings)
    assert (row.engine, row.model, row.backend, row.threads, row.reps) == (
        "ember",
        "tiny",
        "cpu",
        1,
        1,
    )
    assert row.file_bytes == tiny_path.stat().st_size
    assert 0 < row.load_s < row.first_token_s
    assert 0 < row.kv_bytes < row.peak_rss_bytes
    assert 1_000_000 < row.second_bytes < row.peak_rss_bytes
    err = capsys.readouterr().err
    assert (
        "ember: llama.cpp left out: llama.cpp does not start: pip install llama-cpp-python" in err
    )


def _without_llama_cpp(folder: Path) -> Path:
    """A folder of modules in which there is none, whatever is installed."""
    hidden = folder / "hidden"
    hidden.mkdir(exist_ok=True)
    (hidden / "llama_cpp.py").write_text("raise ImportError('no llama_cpp')\n")
    return hidden


def test_a_model_that_does_not_load_ends_in_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF")
    with pytest.raises(EmberError, match=r"ember does not start: .*broken\.gguf: ") as caught:
        _run(LoadSettings(model=str(broken), reps=1))
    assert "\n" not in str(caught.value)


def test_from_the_command_line(tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["bench", "load", "-m", str(tiny_path), "--reps", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["section"] for row in found["rows"]] == ["load"]
    assert found["env"]["settings"]["reps"] == 1


def test_what_is_said_of_rows() -> None:
    peer = replace(ROW, engine="llama.cpp", load_s=0.5, first_token_s=2.0, second_bytes=900_000_000)
    (table,) = load_view.tables([ROW, peer])
    assert table.rows[0][5:] == ("1.12", "1,130", "47.0", "1.13", "70.0")
    assert load_view.findings([ROW, peer]) == [
        "m (1,000 MB) loads in 0.250 s and answers 1.12 s after the start; at its peak it takes "
        "1.13 times the file, and a second process 7% of it more.",
        "llama.cpp loads it in 0.500 s and answers after 2.00 s; a second process takes 90% of "
        "the file more.",
    ]
