"""Clients of every kind at one server; each answer is held to what the request was given alone.

The server is a process of its own, over a tiny model of float32 whose cache loses nothing, so that
an answer is the same however its prompt was read, and beside whom.
"""

import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median

import psutil

from models.gguf.tensor_types import TensorType
from tests.app.serve.conftest import write_served
from tests.app.terminal import ROOT
from tests.own_home import own_home
from tests.soak.questions import NONSENSE, Answer, Question, answer_to, asked, drawn, streamed

_QUESTIONS = 60
_CLIENTS = 8
_LOOK_SECONDS = 0.25
_START_SECONDS = 300.0
# What allocators take while kept prompts come and go.
_NOISE = 24 << 20
_ENDLESS = 1_000_000
_END = 2  # the token by which the model would end an answer
_EXACT = ("--kv", "f16", "--hot", "4096", "--hot-dtype", "f32", "--ctx", "4096")
_BUDGET = ("--kv-budget", "24MiB", "--cache-store", "32MiB")

Known = Sequence[tuple[Question, Answer]]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """done: how many requests of each kind. wrong: answers that were not what they are alone.

    grown: bytes of resident memory from the second third to the last. told: clients that were
    told how their answer ended by a server that was ended. code: of its exit. said: the last
    lines of stderr.
    """

    done: Counter[str]
    wrong: list[str]
    grown: int
    told: int
    code: int
    said: str

    @property
    def faults(self) -> int:
        """Wrong answers, memory that grew, clients that were left alone, and an unclean end."""
        unclean = self.code != 128 + signal.SIGTERM or "Traceback" in self.said
        return len(self.wrong) + self.has_grown + (_CLIENTS - self.told) + unclean

    @property
    def checked(self) -> int:
        """Answers that were held to what they are alone."""
        return self.done["streamed"] + self.done["whole"]

    @property
    def has_grown(self) -> bool:
        """More than noise."""
        return self.grown > _NOISE

    def __str__(self) -> str:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.done.items()))
        return (
            f"{kinds}; {len(self.wrong)} wrong; memory {self.grown / 2**20:+.1f} MiB; at SIGTERM "
            f"{self.told} of {_CLIENTS} running answers ended in words, exit code {self.code}"
        )


def mixed_load(folder: Path, *, seconds: float, seed: int = 0) -> Loaded:
    """Ask for so long, and then end the server while it answers."""
    path, rng = write_served(folder / "small.gguf", TensorType.F32), Random(seed)
    with _started(path, folder) as (process, port, log), ThreadPoolExecutor(_CLIENTS) as pool:
        known = _alone(port, rng)
        deadline = time.monotonic() + seconds

        def client(number: int) -> tuple[Counter[str], list[str]]:
            return _ask_until(deadline, port, known, Random(f"{seed} {number}"))

        clients = [pool.submit(client, number) for number in range(_CLIENTS)]
        resident = _watched(psutil.Process(process.pid), clients)
        done, wrong = Counter[str](alone=len(known)), list[str]()
        for each in clients:
            counted, found = each.result()
            done, wrong = done + counted, wrong + found
        told = _end_amid_answers(process, port, pool)
        code = process.wait(_START_SECONDS)
        third = len(resident) // 3
        return Loaded(
            done=done,
            wrong=wrong,
            grown=int(median(resident[-third:]) - median(resident[third : 2 * third])),
            told=told,
            code=code,
            said=log.read_text(errors="replace")[-3000:],
        )


@contextmanager
def _started(path: Path, folder: Path) -> Iterator[tuple["subprocess.Popen[bytes]", int, Path]]:
    """`ember serve`, its port, and the file that it writes stderr to."""
    log = folder / "stderr"
    flags = (*_EXACT, *_BUDGET, "--port", "0")
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "app", "serve", str(path), *flags],
            cwd=ROOT,
            env=own_home(folder / "home"),
            stderr=stderr,
        )
    try:
        until = time.monotonic() + _START_SECONDS
        while not (found := re.search(r"http://127.0.0.1:(\d+)/v1", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, "it never listened"
            time.sleep(_LOOK_SECONDS)
        yield process, int(found[1]), log
    finally:
        process.kill()
        process.wait()


def _alone(port: int, rng: Random) -> Known:
    """What each of some questions is answered while nobody else asks, and where stops cut that."""
    known = list[tuple[Question, Answer]]()
    while len(known) < _QUESTIONS:
        question = drawn(rng)
        answer = answer_to(port, question, streams=False)
        known.append((question, answer))
        middle = len(answer.text) // 2
        stop = answer.text[middle : middle + 3]
        if len(stop) == 3 and "\ufffd" not in answer.text and stop.strip() == stop:
            before = answer.text[: answer.text.index(stop)]
            known.append((question.with_stop(stop), Answer(text=before, ended="stop")))
    return known


def _ask_until(
    deadline: float, port: int, known: Known, rng: Random
) -> tuple[Counter[str], list[str]]:
    """One client's life: what it did, and what was wrong."""
    done, wrong = Counter[str](), list[str]()
    kinds: dict[str, Callable[[Question], None]] = {
        "left": lambda question: _leave(port, question, rng),
        "refused": lambda _: _be_refused(port, rng),
    }
    while time.monotonic() < deadline:
        question, alone = rng.choice(known)
        kind = rng.choices(("streamed", "whole", *kinds), (5, 5, 2, 1))[0]
        try:
            if kind in kinds:
                kinds[kind](question)
            else:
                found = answer_to(port, question, streams=kind == "streamed")
                assert found == alone, f"{question}: {found}, alone {alone}"
        except (AssertionError, OSError) as error:
            wrong.append(f"{kind}: {type(error).__name__}: {error}")
        done[kind] += 1
    return done, wrong


def _leave(port: int, question: Question, rng: Random) -> None:
    """Before the first word, or amid a long answer."""
    body = {**question.body, "stream": True, "max_tokens": 2000, "stop": []}
    with asked(port, question.path, json.dumps(body).encode()) as connection:
        if rng.random() < 0.7:
            response = connection.getresponse()
            for _ in range(rng.randint(1, 20)):
                response.readline()


def _be_refused(port: int, rng: Random) -> None:
    with asked(port, "/v1/completions", rng.choice(NONSENSE)) as connection:
        response = connection.getresponse()
        assert response.status == 400, (response.status, response.read())
        assert json.loads(response.read())["error"]["message"]


def _watched(
    process: psutil.Process, clients: list[Future[tuple[Counter[str], list[str]]]]
) -> list[int]:
    """Resident bytes at every look, until all clients are done."""
    resident = list[int]()
    while not all(each.done() for each in clients):
        resident.append(process.memory_info().rss)
        time.sleep(_LOOK_SECONDS)
    return resident


def _end_amid_answers(
    process: "subprocess.Popen[bytes]", port: int, pool: ThreadPoolExecutor
) -> int:
    """Kill the server in the middle of long answers; how many clients were told of the end."""
    endless = {"max_tokens": _ENDLESS, "logit_bias": {str(_END): -1000}}
    body = json.dumps({"prompt": [5, 6, 7], "temperature": 0, "stream": True, **endless}).encode()

    def follow(sent: Callable[[], None]) -> bool:
        with asked(port, "/v1/completions", body) as connection:
            sent()
            response = connection.getresponse()
            if response.status != 200:  # it came too late, and is told so
                return bool(json.loads(response.read())["error"]["message"])
            return streamed(response).ended == "length"

    sent = list[None]()
    running = [pool.submit(follow, lambda: sent.append(None)) for _ in range(_CLIENTS)]
    while len(sent) < _CLIENTS:
        time.sleep(_LOOK_SECONDS)
    process.terminate()
    return sum(each.exception() is None and each.result() for each in running)
