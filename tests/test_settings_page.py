"""docs/settings.md names every setting, folder and environment variable that the code has."""

import ast
import re
from dataclasses import fields
from pathlib import Path

import platformdirs
import pytest
from platformdirs.macos import MacOS
from platformdirs.unix import Unix

from app import layer_losses
from app.chat import personas, settings
from app.sessions import store
from app.wake import folder as kept
from kvcache.native.kept import kernels_folder
from models import calibrate
from models.finding.store import models_folder

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
# What is looked up by libraries, or set for them.
OF_LIBRARIES = {
    *("HF_TOKEN", "HF_ENDPOINT", "XDG_CONFIG_HOME", "XDG_DATA_HOME"),
    *("NO_COLOR", "TERM", "COLORTERM"),
}
# Of a locale, what a variable may say; options of connections.
VALUES = {"POSIX", "TCP_KEEPIDLE", "TCP_KEEPALIVE", "TCP_KEEPINTVL", "TCP_KEEPCNT"}


def _rows(heading: str) -> list[list[str]]:
    """The cells of the table under a heading."""
    part = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def _written(value: object) -> str:
    if value is None:
        return "the model's"
    if isinstance(value, bool):
        value = "on" if value else "off"
    return f"`{value}`" if value != "" else ""


def test_every_setting_has_its_row_and_default() -> None:
    rows = [row[:2] for row in _rows("Settings of the chat")]
    assert rows == [
        [f"`{each.name}`", _written(each.default)] for each in fields(settings.Settings)
    ]


@pytest.mark.parametrize(("system", "column"), [(Unix, 1), (MacOS, 2)])
def test_folders_are_where_they_are_said_to_be(
    system: type, column: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("EMBER_CACHE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(platformdirs, "PlatformDirs", system)
    there = (
        settings.default_path(),
        personas.default_path(),
        store.default_path(),
        models_folder(),
        kept.default_folder(),
        kernels_folder(),
        calibrate.folder(),
        layer_losses.folder(),
    )
    said = [row[column] for row in _rows("Folders")]
    assert said == [f"`{str(path).replace(str(tmp_path), '~')}`" for path in there]


def _read_variables() -> set[str]:
    """Names of environment variables, in modules that look at the environment."""
    found = set()
    for package in ("app", "kvcache", "models"):
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            if "os.environ" not in text:
                continue
            nodes = list(ast.walk(ast.parse(text)))
            # What stands for a flag's value looks the same.
            values = {id(n.value) for n in nodes if isinstance(n, ast.keyword) and n.arg}
            words = [n.value for n in nodes if isinstance(n, ast.Constant) and id(n) not in values]
            found |= {str(word) for word in words if re.fullmatch(r"[A-Z][A-Z_]{2,}", str(word))}
    return found


def test_every_environment_variable_is_named() -> None:
    said = set(re.findall(r"`([A-Z_]+)`", " ".join(r[0] for r in _rows("Environment variables"))))
    assert said == (_read_variables() | OF_LIBRARIES) - VALUES
