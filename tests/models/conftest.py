"""Fixtures of the model tests."""

from pathlib import Path

import pytest

from tests.models.gguf.raw_gguf import Writer


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    """Puts bytes into a file and returns its path."""

    def to_file(data: bytes) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(data)
        return path

    return to_file
