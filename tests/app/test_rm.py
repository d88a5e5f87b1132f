"""What goes with a model that is removed."""

from pathlib import Path

import pytest

from app import cli, layer_losses
from models import calibrate, load
from models.finding.store import models_folder
from models.gguf.identity import identity
from tests.app.conftest import write_tiny


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EMBER_CACHE", str(tmp_path))
    models_folder().mkdir(parents=True)
    return write_tiny(models_folder() / "tiny.gguf")


def test_what_was_counted_of_a_model_goes_with_it(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(calibrate, "TOKENS", 70)
    loaded = load(path)
    metric = calibrate.keep(calibrate.count(loaded), loaded)
    name = identity(path)
    made = [
        metric,
        calibrate.folder() / f"{name}-short.safetensors",
        layer_losses.path_of(name, plain=False),
        layer_losses.path_of(name, plain=True),
    ]
    others = [calibrate.folder() / f"{'0' * 32}.safetensors"]
    others.append(layer_losses.path_of("0" * 32, plain=False))
    layer_losses.folder().mkdir()
    for each in (*made[1:], *others):
        each.write_bytes(b"0" * 500_000)
    bytes_of = path.stat().st_size + sum(each.stat().st_size for each in made)
    assert cli.run(["rm", str(path)]) == 0
    assert f"removed {path}: {bytes_of / 1e6:.1f} MB freed" in capsys.readouterr().out
    assert not any(each.exists() for each in (path, *made))
    assert all(each.exists() for each in others)


def test_a_file_that_is_no_model_is_removed_alone(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_bytes(b"GGUF" + b"\xff" * 90)
    assert cli.run(["rm", str(path)]) == 0
    assert "MB freed" in capsys.readouterr().out
    assert not path.exists()
