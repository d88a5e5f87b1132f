"""What several of these tests load."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvcache import mlx_lm
from tests.kvcache.mlx_lm.saved_model import save_model
from tests.kvcache.tiny_llama import make_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The small random model as mlx-lm loads it: words w0, w1, ... are its ids."""
    return save_model(make_model(), tmp_path)


@pytest.fixture(params=[False, True], ids=["fetched", "installed"])
def with_and_without_hook(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test twice: by what networks fetch, and with MLX's attention replaced."""
    if request.param:
        mlx_lm.install()
    yield
    mlx_lm.uninstall()
