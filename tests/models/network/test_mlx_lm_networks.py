"""mlx-lm's own networks as a second oracle: with the same weights they agree with both."""

from pathlib import Path

import numpy as np
import pytest

from models.network.architectures import ARCHITECTURES
from tests.models.network.mlx_lm_networks import NETWORKS, mlx_lm_logits
from tests.models.network.truth import TRUTH, furthest, open_tiny, told
from tests.tiny_files import PROMPTS, TINY, prompt

LONGEST = len(PROMPTS) - 1


@pytest.fixture(scope="module", params=NETWORKS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def logits(name: str) -> np.ndarray:
    """mlx-lm's for the longest prompt."""
    return mlx_lm_logits(name, prompt(PROMPTS[LONGEST]))


def test_every_architecture_is_one_of_mlx_lm_s_too() -> None:
    assert {TINY[name].architecture for name in NETWORKS} == set(ARCHITECTURES)


def test_mlx_lm_agrees_with_llama_cpp(name: str, logits: np.ndarray) -> None:
    assert furthest(TRUTH[name]["prompts"][LONGEST], logits) < 0.01


def test_ember_agrees_with_mlx_lm(name: str, logits: np.ndarray, tmp_path: Path) -> None:
    got = told(open_tiny(tmp_path, name))(prompt(PROMPTS[LONGEST]))
    assert np.abs(got - logits).max() < 0.001 * np.abs(logits).max()
