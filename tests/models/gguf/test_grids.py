"""Grids against gguf-py's weights of blocks whose codes and signs are known."""

import numpy as np
import pytest

from models.gguf.grids import grid_of
from models.gguf.tensor_types import TensorType

SIZES = {
    TensorType.IQ2_XXS: (256, 8),
    TensorType.IQ2_XS: (512, 8),
    TensorType.IQ2_S: (1024, 8),
    TensorType.IQ3_XXS: (256, 4),
    TensorType.IQ3_S: (512, 4),
}


@pytest.mark.parametrize("kind", TensorType, ids=lambda kind: kind.name)
def test_words_say_the_levels_of_runs(kind: TensorType) -> None:
    grid = grid_of(kind)
    if kind not in SIZES:
        assert grid is None
        return
    assert grid is not None
    assert grid.runs.shape == SIZES[kind]
    bits = 16 // grid.runs.shape[1]
    levels = grid.words[:, None] >> np.arange(grid.runs.shape[1]) * bits & (1 << bits) - 1
    magnitudes = np.unique(grid.runs)
    assert (magnitudes[levels] == grid.runs).all()
    assert len(np.unique(grid.words)) == len(grid.words)
