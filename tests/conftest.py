"""Fixtures that tests of several packages share."""

import signal
from pathlib import Path

import pytest
from hypothesis import settings

from models.finding import discover
from models.finding.fetch import fetch

# A busy machine may take long over any example, and a run fails for its change alone: the
# examples are the same in every run. `pytest --hypothesis-profile searching` draws others.
settings.register_profile("searching", deadline=None)
settings.register_profile("same", deadline=None, derandomize=True)
settings.load_profile("same")

# What a shell starts in the background ignores Ctrl-C, as would all programs that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_FOLDER_VARIABLES = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "OLLAMA_MODELS")


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The default model, fetched once and kept in the user's own cache for later runs."""
    return fetch("smollm2")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder in which no program has left a model."""
    folder = tmp_path / "home"
    folder.mkdir()
    for variable in _FOLDER_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    services = tuple(f"{folder}{each}" for each in discover._OLLAMA_SERVICE_FOLDERS)
    monkeypatch.setattr(discover, "_OLLAMA_SERVICE_FOLDERS", services)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / ".cache"))
    # Where these are set, they go before HOME: no test is to write over a user's own.
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / ".config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(folder / ".local" / "share"))
    monkeypatch.setenv("EMBER_CACHE", str(folder / ".cache" / "ember"))
    return folder


@pytest.fixture(autouse=True)
def _plain_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """What models count of themselves is not looked for, as long as a test does not want it."""
    monkeypatch.setenv("EMBER_CALIBRATE", "0")
