"""A server over two ranks answers as one of one process does, and ends with any of them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from kvcache.cache_folder import cache_folder
from models.gguf.tensor_types import TensorType
from tests.app.serve.conftest import SHAPE
from tests.gguf_factory import every_matrix, sentencepiece_tokenizer, write_llama
from tests.local_ranks import ROOT, start_ranks
from tests.patience import patience

_FLAGS = ("--port", "0", "--kv", "f16", "--ctx", "512", "--kv-budget")
# Of one process: four sequences, so that not all prompts are kept.
_BUDGET_KIB = 512
_LENGTHS = (10, 300, 129, 64)


@dataclass(kw_only=True)
class Served:
    """A server's processes, the first of which answers at `url`."""

    processes: list[subprocess.Popen[str]]
    url: str

    def complete(self, ids: list[int], count: int = 12, **more: Any) -> Any:
        client = OpenAI(base_url=self.url, api_key="none", max_retries=0, timeout=patience(60))
        return client.completions.create(
            model="small", prompt=ids, max_tokens=count, **{"temperature": 0, **more}
        )

    def told(self, ids: list[int], **more: Any) -> tuple[str, int]:
        """The answer, and how many tokens of the prompt were known."""
        answer = self.complete(ids, **more)
        return answer.choices[0].text, answer.usage.prompt_tokens_details.cached_tokens

    def last_words(self) -> list[str]:
        """What each process says on stderr until it ends."""
        return [each.communicate(timeout=patience(30))[1] for each in self.processes]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "small.gguf"
    write_llama(
        path,
        config=SHAPE,
        types=every_matrix(TensorType.F32),
        tokenizer_metadata=sentencepiece_tokenizer(SHAPE.vocab),
        seed=7,
    )
    return path


@contextmanager
def serving(model: Path, folder: Path, ranks: int) -> Iterator[Served]:
    """A server of so many processes, which are killed at the end."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "app", "serve", str(model), *_FLAGS]
    command.append(f"{_BUDGET_KIB // ranks}KiB")
    homes = {"HOME": str(folder), "EMBER_CACHE": str(cache_folder())}
    if ranks > 1:
        processes = start_ranks(command, ranks, folder, **homes)
    else:
        processes = [
            subprocess.Popen(
                command, cwd=ROOT, env=os.environ | homes, stderr=subprocess.PIPE, text=True
            )
        ]
    try:
        yield Served(processes=processes, url=_url(processes[0]))
    finally:
        for each in processes:
            each.kill()
            each.wait()


def _url(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if "http://" in line:
            return line.split()[-1]
    raise AssertionError(said)


@pytest.fixture(scope="module")
def alone(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(model, tmp_path_factory.mktemp("alone"), 1) as found:
        yield found


@pytest.fixture(scope="module")
def shared(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(model, tmp_path_factory.mktemp("shared"), 2) as found:
        yield found


def prompt(length: int) -> list[int]:
    return [3 + (7 * at * at + length) % 600 for at in range(length)]


def test_clients_at_once_are_each_told_what_one_process_tells(
    alone: Served, shared: Served
) -> None:
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda n: shared.told(prompt(n))[0], _LENGTHS))
    assert together == [alone.told(prompt(each))[0] for each in _LENGTHS]
    assert len(set(together)) > 1


def test_what_is_kept_of_prompts_is_kept_by_all(alone: Served, shared: Served) -> None:
    """More prompts than fit, some of which come again or go another way."""
    asked = [prompt(n) for n in (310, 311, 312, 310, 313, 314, 312)]
    asked.append([*prompt(314)[:250], *range(90, 110)])
    said = [(shared.told(each), alone.told(each)) for each in asked]
    assert [ours for ours, _ in said] == [theirs for _, theirs in said]
    known = [cached for (_, cached), _ in said]
    assert max(known) > 200
    assert 0 in known[1:]


def test_what_is_drawn_is_rank_0s(alone: Served, shared: Served) -> None:
    def drawn(seed: int | None) -> str:
        return shared.told(prompt(30), seed=seed, temperature=2.0)[0]

    with ThreadPoolExecutor(4) as pool:
        beside = [pool.submit(drawn, None) for _ in range(2)]
        same = [pool.submit(drawn, 5) for _ in range(2)]
    assert {each.result() for each in same} == {drawn(5)}
    assert all(each.result() for each in beside)
    # The ranks still hold the same.
    assert shared.told(prompt(64))[0] == alone.told(prompt(64))[0]


def test_a_stop_string_and_a_client_that_leaves_end_rows_on_all(
    alone: Served, shared: Served
) -> None:
    whole = alone.told(prompt(40), count=30)[0]
    stop = whole[len(whole) // 2 : len(whole) // 2 + 3]
    assert shared.told(prompt(40), count=30, stop=[stop])[0] == whole[: whole.index(stop)]
    stream = shared.complete(prompt(50), 400, stream=True)
    next(iter(stream))
    stream.close()
    assert shared.told(prompt(41))[0] == alone.told(prompt(41))[0]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_server_with_one_line(
    victim: int, model: Path, tmp_path: Path
) -> None:
    with serving(model, tmp_path, 2) as served:
        stream = iter(served.complete(prompt(50), 400, stream=True))
        next(stream)
        served.processes[victim].send_signal(signal.SIGKILL)
        said = served.last_words()[1 - victim]
        who = "" if victim else "rank 1: "
        assert f"ember: {who}error: rank {victim} of 2 has ended, and the model with it" in said
        assert served.processes[1 - victim].returncode == 1


def test_a_signal_ends_all_without_a_word(model: Path, tmp_path: Path) -> None:
    with serving(model, tmp_path, 2) as served:
        assert served.told(prompt(20))
        served.processes[0].send_signal(signal.SIGTERM)
        leader, follower = served.last_words()
        assert "error" not in leader
        assert follower == ""
        assert [each.returncode for each in served.processes] == [143, 0]
