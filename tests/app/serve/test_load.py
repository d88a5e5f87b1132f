"""Many clients, clients that leave, and the end of a server."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import openai
import psutil
import pytest

from app.serve.server_settings import ServerSettings
from kvcache import resolve
from tests.app.serve.conftest import EXACT, SHAPE, Serve, Served, serving
from tests.app.serve.test_answers import complete, prompt
from tests.app.terminal import ROOT, inherited
from tests.patience import patience, wait_until

_LEAST = 5
SMALL = replace(EXACT, max_tokens=256)


def budget_of(sequences: int) -> int:
    """Bytes of so many windows of the small cache."""
    from kvcache import ModelShape

    shape = ModelShape(
        layers=SHAPE.layers,
        kv_heads=SHAPE.kv_heads,
        head_dim=SHAPE.head_dim,
        context=SHAPE.context,
    )
    return sequences * resolve(SMALL, shape).max_bytes


@contextmanager
def asking(served: Served, count: int, *, stream: bool) -> Iterator[http.client.HTTPConnection]:
    """A client in the middle of a long answer."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=patience(60))
    body = {"prompt": prompt(20), "max_tokens": count, "temperature": 0, "stream": stream}
    connection.request("POST", "/v1/completions", json.dumps(body))
    try:
        yield connection
    finally:
        connection.close()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_leaves_its_place(serve: Serve, stream: bool) -> None:
    served = serve(ServerSettings(cache=SMALL, total=budget_of(1)))
    with asking(served, 1_000_000, stream=stream):
        wait_until(lambda: served.generator.figures.running == 1)
        with asking(served, 1_000_000, stream=stream):
            wait_until(lambda: served.generator.figures.waiting == 1)
        wait_until(lambda: served.generator.figures.waiting == 0)
        assert served.generator.figures.running == 1
    wait_until(lambda: served.generator.figures.running == 0)
    assert complete(served, prompt(5), 3).usage.completion_tokens == 3
    gone = "the client has gone"
    wait_until(lambda: sum(line.endswith(gone) for line in served.lines) == 2)


def test_a_flood_is_answered_in_order_in_the_places_there_are(serve: Serve) -> None:
    served = serve(ServerSettings(cache=SMALL, total=budget_of(4)))
    alone = [complete(served, prompt(n), 6).choices[0].text for n in range(_LEAST, _LEAST + 20)]
    most = before = 0

    def answered(number: int) -> bool:
        nonlocal most
        text = complete(served, prompt(_LEAST + number % 20), 6).choices[0].text
        most = max(most, served.generator.figures.running)
        return bool(text == alone[number % 20])

    with ThreadPoolExecutor(64) as pool:
        assert all(pool.map(answered, range(100)))
        before = psutil.Process().memory_info().rss
        assert all(pool.map(answered, range(200)))
    assert 0 < most <= served.generator.figures.places == 4
    assert psutil.Process().memory_info().rss - before < 32 << 20
    assert served.generator.figures.kept_bytes <= budget_of(4)


def test_an_answer_that_cannot_be_computed_ends_alone(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(ServerSettings(cache=SMALL, total=budget_of(2)))
    model = served.generator.model_provider.model
    hidden = type(model).hidden

    def failing(*given: Any, **named: Any) -> Any:
        raise RuntimeError("no memory")

    monkeypatch.setattr(type(model), "hidden", failing)
    with pytest.raises(openai.InternalServerError, match="failed by RuntimeError: no memory"):
        complete(served, prompt(40), 5)
    with pytest.raises(openai.APIError, match="failed by RuntimeError: no memory"):
        list(complete(served, prompt(40), 5, stream=True))
    monkeypatch.setattr(type(model), "hidden", hidden)
    assert complete(served, prompt(40), 5).usage.completion_tokens == 5


def test_figures_are_told_as_json(serve: Serve) -> None:
    served = serve(ServerSettings(cache=SMALL, total=budget_of(2)))
    for _ in range(2):
        complete(served, prompt(40), 5)
    wait_until(lambda: served.generator.figures.answer_tokens == 10)
    with urlopen(f"{served.url}/stats", timeout=patience(30)) as response:
        found = json.load(response)
    assert found["places"] == 2
    assert found["window"] == 256
    assert found["requests"] == 2
    assert found["hits"] == 1
    assert found["cached_tokens"] == 38
    assert found["prompt_tokens"] == 42
    assert found["budget_bytes"] == budget_of(2)
    assert 0 < found["kept_bytes"] <= budget_of(2)
    with urlopen(f"{served.url}/health", timeout=patience(30)) as response:
        assert json.load(response) == {"status": "ok"}


def test_an_answer_beyond_the_window_goes_on_where_it_is_asked_to(serve: Serve) -> None:
    served = serve(ServerSettings(cache=SMALL, total=budget_of(1)))
    ends = complete(served, prompt(200), 1000)
    assert (ends.usage.completion_tokens, ends.choices[0].finish_reason) == (1000, "length")
    unsaid = served.client.completions.create(
        model="small", prompt=prompt(200), temperature=0, extra_body={"max_tokens": None}
    )
    assert unsaid.usage is not None
    assert unsaid.usage.completion_tokens == 56


@contextmanager
def started(path: Path, *more: str) -> Iterator[tuple["subprocess.Popen[str]", Served]]:
    """`ember serve` in a process of its own, and where it answers."""
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "serve", str(path), "--port", "0", *more],
        cwd=ROOT,
        env=inherited(),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"http://127.0.0.1:(\d+)/v1", line):
                break
        else:
            pytest.fail("it never listened")
        yield process, Served(port=int(found[1]), generator=None)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_server_and_answers_are_told(served_path: Path, number: int) -> None:
    with started(served_path, "--ctx", "512") as (process, served):
        with asking(served, 1_000_000, stream=True) as client:
            response = client.getresponse()
            assert response.readline().startswith((b"data: ", b": keepalive"))
            os.kill(process.pid, number)
            told = response.read().decode()
        assert process.wait(patience(20)) == 128 + number
        events = [line for line in told.splitlines() if line.startswith("data: ")]
        assert (
            json.loads(events[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        )
        assert events[-1] == "data: [DONE]"
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_a_second_signal_ends_at_once(served_path: Path) -> None:
    with (
        started(served_path) as (process, served),
        asking(served, 1_000_000, stream=True) as client,
    ):
        client.getresponse().readline()
        os.kill(process.pid, signal.SIGINT)
        wait_until(lambda: not _takes(served))
        began = time.monotonic()
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(patience(20)) in (130, -signal.SIGINT)
        assert time.monotonic() - began < patience(2)


def _takes(served: Served) -> bool:
    """Whether it takes connections still."""
    try:
        with urlopen(f"{served.url}/health", timeout=patience(5)):
            return True
    except OSError:
        return False


def test_what_cannot_be_is_said_before_a_model_is_loaded(served_path: Path) -> None:
    def failed(*flags: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "app", "serve", str(served_path), *flags],
            cwd=ROOT,
            env=inherited(),
            capture_output=True,
            text=True,
            timeout=patience(60),
        )
        assert done.returncode in (1, 2)
        assert done.stderr.count("\n") == 1
        return done.stderr

    assert "give an --api-key, or EMBER_API_KEY" in failed("--host", "0.0.0.0")
    assert "one sequence of --ctx 4096 takes" in failed("--ctx", "4096", "--kv-budget", "100KiB")


@pytest.mark.usefixtures("home")
def test_a_prompt_is_known_to_the_next_run(served_path: Path) -> None:
    told = [{"role": "system", "content": "Be short and to the point. " * 20}]
    settings = ServerSettings(cache=replace(EXACT, hot=32, max_tokens=1024), stored=1 << 30)
    answers, cached = [], []
    for question in ("One?", "One?", "Two?"):
        with serving(served_path, settings) as served:
            answer = served.client.chat.completions.create(
                model="small",
                messages=[*told, {"role": "user", "content": question}],  # type: ignore[list-item]
                max_tokens=4,
                temperature=0,
            )
            answers.append(answer.choices[0].message.content)
            assert answer.usage is not None
            assert answer.usage.prompt_tokens_details is not None
            cached.append(answer.usage.prompt_tokens_details.cached_tokens or 0)
    assert cached[0] == 0
    assert min(cached[1:]) > 100
    assert answers[0] == answers[1]
