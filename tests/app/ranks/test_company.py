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
from tests.local_ranks import ROOT, ended, start_ranks
from tests.patience import patience

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
    alone = _alone([*command, *flags], here)
    ranks = run_ranks([*command, *flags], tmp_path, here)
    assert [code for *_, code in (alone, *ranks)] == [0] * 3, ranks
    said, told = json.loads(alone[0]), json.loads(ranks[0][0])
    assert told["text"] == said["text"]
    for tokens in ("total", "hot", "cold", "evicted"):
        assert told["cache"][tokens] == said["cache"][tokens]
    assert told["cache"]["hot_bytes"] == said["cache"]["hot_bytes"] / 2
    assert ranks[1][:2] == ("", "")


def _alone(arguments: list[str], here: dict[str, str], typed: str = "") -> tuple[str, str, int]:
    """As `ended` tells, of one process."""
    done = subprocess.run(
        [*_APP, *arguments], env=os.environ | here, input=typed, capture_output=True, text=True
    )
    return done.stdout, done.stderr, done.returncode


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


def test_a_chat_that_waits_for_its_user_ends_too(
    model: Path, here: dict[str, str], tmp_path: Path
) -> None:
    flags = ["--plain", "--max-tokens", "1", "--chat-template", "chatml"]
    started = start_ranks([*_APP, "chat", str(model), *flags], 2, tmp_path, **here)
    leader = started[0]
    assert leader.stdout is not None
    assert leader.stdout.read(1)  # the first line says what was loaded
    started[1].send_signal(signal.SIGKILL)
    leader.wait(patience(30))  # before its stdin ends
    (_, said, code), _ = ended(started)
    assert (said.splitlines()[-1], code) == (
        "ember: error: rank 1 of 2 has ended, and the model with it",
        1,
    )


def test_what_no_rank_can_do_is_said_once(
    model: Path, here: dict[str, str], tmp_path: Path
) -> None:
    too_small = ["run", str(model), _PROMPT, "--raw", "--ctx", "20"]
    (out, said, code), follower = run_ranks(too_small, tmp_path, here)
    assert (out, code) == ("", 1)
    assert said.count("\n") == 1
    assert said.startswith("ember: error: a window of 20 tokens does not hold")
    assert follower == ("", "", 0)
    ranks = run_ranks(["run", str(model), _PROMPT, "--raw"], tmp_path, here, count=3)
    assert ranks[0][1].endswith("give it 2 ranks, or 1\n")
    assert ranks[1:] == [("", "", 0)] * 2


@pytest.mark.parametrize("reader_goes", [False, True])
def test_when_rank_0_is_done_all_are(
    reader_goes: bool, model: Path, here: dict[str, str], tmp_path: Path
) -> None:
    """By Ctrl-C, which all processes of a terminal get, or as nobody reads it any more."""
    command = [*_APP, "run", str(model), _PROMPT, "--raw", *_ENDLESS]
    started = start_ranks(command, 2, tmp_path, **here)
    assert started[0].stdout is not None
    assert started[0].stdout.read(1)
    if reader_goes:
        started[0].stdout.close()
        started[0].stdout = None
    else:
        for each in started:
            each.send_signal(signal.SIGINT)
    (_, said, code), follower = ended(started)
    assert code == (141 if reader_goes else 130)
    assert "error" not in said
    assert follower == ("", "", 0)


def test_ranks_with_unlike_files_load_none(
    model: Path, here: dict[str, str], tmp_path: Path
) -> None:
    """Each has its own folder, where the file of this name is another model's."""
    for rank, kind in enumerate((TensorType.F32, TensorType.F16)):
        (tmp_path / str(rank)).mkdir()
        write_tiny(tmp_path / str(rank) / "tiny.gguf", kind)
    script = 'cd $MLX_RANK && exec "$@"'
    command = ["sh", "-c", script, "sh", *_APP, "run", "./tiny.gguf", _PROMPT, "--raw"]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    started = start_ranks(command, 2, tmp_path, within=tmp_path, PYTHONPATH=path, **here)
    said = "error: not all ranks have the same file tiny.gguf: copy one to all\n"
    assert ended(started) == [("", f"ember: {said}", 1), ("", "", 0)]


def test_a_chat_goes_on_from_what_its_ranks_hold(
    model: Path, here: dict[str, str], tmp_path: Path
) -> None:
    flags = ["--plain", "--temp", "0", "--max-tokens", "8", "--chat-template", "chatml"]
    command = [*_APP, "chat", str(model), *flags]
    asked = "one two\nthree\n/quit\n"
    alone = _alone(["chat", str(model), *flags], here, asked)
    started = start_ranks(command, 2, tmp_path, **here)
    for each in started:  # as `mlx.launch` does
        assert each.stdin is not None
        each.stdin.write(asked)
        each.stdin.flush()
    (out, err, code), follower = ended(started)
    assert code == 0, err
    assert out == alone[0]
    assert "reused" in err
    assert follower == ("", "", 0)
