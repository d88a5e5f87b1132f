"""What several of these tests load."""

from pathlib import Path

import pytest

from tests.kvcache.mlx_lm.saved_model import save_model
from tests.kvcache.tiny_llama import make_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The small random model as mlx-lm loads it: words w0, w1, ... are its ids."""
    return save_model(make_model(), tmp_path)
