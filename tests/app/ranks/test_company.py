"""Processes of one model: rank 0 says what one process says, others nothing, and all end with one.

MLX's ring over loopback, as `mlx.launch -n 2` starts it.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kvcache.cache_folder import cache_folder
from models.gguf.tensor_types import TensorType
from tests.app.conftest import write_tiny
from tests.local_ranks import ended, start_ranks

_APP = [sys.executable, "-m", "app"]
_PROMPT = "the cat sat on the mat and the cat"
_ENDLESS = (
    "--max-tokens",
    "1000000",
    "--allow-loops",
    "--ctx",
    "64",
    "--hot",
    "16",
    "--block",
    "16",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two KV heads, whose columns are in no blocks."""
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny.gguf", TensorType.F32)


@pytest.fixture
def here(folders: dict[str, str]) -> dict[str, str]:
    """Folders of their own, but for the compiled kernels."""
    return folders | {"EMBER_CACHE": str(cache_folder())}


def run_ranks(
    arguments: list[str], folder: Path, here: dict[str, str], count: int = 2
) -> list[tuple[str, str, int]]:
    """stdout, stderr and the exit code of each."""
    return ended(start_ranks([*_APP, *arguments], count, folder, **here))


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--temp", "1.5", "--repeat-penalty", "1.2"],
        ["--ctx", "64", "--hot", "16", "--block", "16"],
    ],
)
def test_rank_0_says_what_one_process_says_and_others_nothing(
    flags: list[str], model: Path, here: dict[str, str], tmp_path: Path
) -> None:
    command = ["run", str(model), _PROMPT, "--raw", "--json", "--max-tokens", "40", "--seed", "3"]
    alone = ended([_alone([*command, *flags], here)])
    ranks = run_ranks([*command, *flags], tmp_path, here)
    assert [code for *_, code in (*alone, *ranks)] == [0] * 3, ranks
    said, told = json.loads(alone[0][0]), json.loads(ranks[0][0])
    assert told["text"] == said["text"]
    for tokens in ("total", "hot", "cold", "evicted"):
        assert told["cache"][tokens] == said["cache"][tokens]
    assert told["cache"]["hot_bytes"] == said["cache"]["hot_bytes"] / 2
    assert ranks[1][:2] == ("", "")


def _alone(arguments: list[str], here: dict[str, str]) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*_APP, *arguments], env=dict(os.environ) | here, stdout=pipe, stderr=pipe, text=True
    )


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_others_with_one_line(
    victim: int, model: Path, here: dict[str, str], tmp_path: Path
) -> None:
    command = [*_APP, "run", str(model), _PROMPT, "--raw", *_ENDLESS]
    started = start_ranks(command, 2, tmp_path, **here)
    assert started[0].stdout is not None
    assert started[0].stdout.read(1)
    started[victim].send_signal(signal.SIGKILL)
    every = ended(started)
    _, said, code = every[1 - victim]
    who = "" if victim else "rank 1: "
    assert said == f"ember: {who}error: rank {victim} of 2 has ended, and the model with it\n"
    assert code == 1
    assert every[victim][1:] == ("", -signal.SIGKILL)
