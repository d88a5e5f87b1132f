"""`bench serve`: what several clients get of a server together, and who asks again.

Each server runs in a process of its own, and is asked as any client does, over HTTP. With peers
llama.cpp's is asked the same in turns with ember's.
"""

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from statistics import median

from app import __version__
from app.bench.engines.process import environment
from app.bench.environment import physical_cores
from app.bench.meter import Meter
from app.bench.sections.text import FOLDER, Text
from app.bench.settings import ServeSettings
from kvcache.errors import EmberError

_EMBER, _LLAMA = "ember", "llama.cpp"
_PEER = "llama-server"
# Characters of a token of English, and of the prompt of who shares none.
_CHARACTERS, _SHORT = 4, 200
_PATIENCE = 600.0
# Expected: to start, a token of one client, a token that is read.
_STARTING_SECONDS, _DRAWN_SECONDS, _READ_SECONDS = 3.0, 0.009, 0.0022


@dataclass(frozen=True, kw_only=True)
class ServeRow:
    """One server. Times are medians.

    one_tps, all_tps: tokens a second of answers, by one client and by all together. prefix:
    tokens that a request shares with an earlier one; cold_s, kept_s: to the first token of the
    answer, before and after that.
    """

    model: str
    engine: str
    clients: int
    tokens: int
    one_tps: float
    all_tps: float
    prefix: int
    cold_s: float
    kept_s: float
    reps: int
    settings: str


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """first_s: to the first token. prompt, tokens: how many were read and said."""

    first_s: float
    prompt: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class _Turn:
    """What one server gave of one run; as in `ServeRow`."""

    one_tps: float
    all_tps: float
    prefix: int
    cold_s: float
    kept_s: float


def expected_seconds(settings: ServeSettings) -> float:
    """Of the whole section."""
    engines = 2 if settings.peers else 1
    return engines * (_STARTING_SECONDS + settings.reps * _turn_seconds(settings))


def run(settings: ServeSettings, meter: Meter) -> Iterator[ServeRow]:
    """A row for each server. Raises EmberError where there is none, or it does not start."""
    engines = _engines(settings)
    turns: dict[str, list[_Turn]] = {engine: [] for engine in engines}
    with ExitStack() as stack:
        with meter.step("serve: starting", _STARTING_SECONDS * len(engines)):
            ports = [stack.enter_context(_started(engine, settings)) for engine in engines]
        # In turns, so that what else the machine does meets all alike.
        for rep in range(settings.reps):
            for engine, port in zip(engines, ports, strict=True):
                with meter.step(f"serve: {engine}", _turn_seconds(settings)):
                    turns[engine].append(_turn(settings, port, rep))
    for engine, found in turns.items():
        yield _row(engine, settings, found)


def _turn_seconds(settings: ServeSettings) -> float:
    drawn = settings.tokens * (1 + settings.clients) * _DRAWN_SECONDS
    return drawn + settings.prefix * _READ_SECONDS


def _engines(settings: ServeSettings) -> Sequence[str]:
    if not settings.peers:
        return (_EMBER,)
    if not shutil.which(_PEER):
        raise EmberError(
            f"there is no {_PEER} on the path: docs/bench.md says how to build it; or measure "
            "without --peers"
        )
    return _EMBER, _LLAMA


def _turn(settings: ServeSettings, port: int, rep: int) -> _Turn:
    text = (FOLDER / Text.ACTS.value).read_text(encoding="utf-8")
    if not rep:
        _ask(port, text[:_SHORT], 1)
    one = _tokens_per_second(port, settings.tokens, [_piece(text, rep, 0)])
    prompts = [_piece(text, rep, 1 + client) for client in range(settings.clients)]
    together = _tokens_per_second(port, settings.tokens, prompts)
    # Of another place in the text each time, so that nobody has read it before.
    length = settings.prefix * _CHARACTERS
    shared = text[(1 + rep) * length : (2 + rep) * length]
    first = _ask(port, f"{shared}\nIn short:", 1)
    again = _ask(port, f"{shared}\nTo the point:", 1)
    return _Turn(
        one_tps=one,
        all_tps=together,
        prefix=first.prompt,
        cold_s=first.first_s,
        kept_s=again.first_s,
    )


def _row(engine: str, settings: ServeSettings, turns: Sequence[_Turn]) -> ServeRow:
    return ServeRow(
        model=Path(settings.model).stem,
        engine=engine,
        clients=settings.clients,
        tokens=settings.tokens,
        one_tps=median(turn.one_tps for turn in turns),
        all_tps=median(turn.all_tps for turn in turns),
        prefix=turns[-1].prefix,
        cold_s=median(turn.cold_s for turn in turns),
        kept_s=median(turn.kept_s for turn in turns),
        reps=settings.reps,
        settings=f"{__version__}, defaults" if engine == _EMBER else " ".join(_places(settings)),
    )


def _piece(text: str, rep: int, client: int) -> str:
    """A short prompt of its own for each client and time."""
    at = (rep * 64 + client) * _SHORT
    return text[at : at + _SHORT]


def _tokens_per_second(port: int, tokens: int, prompts: Sequence[str]) -> float:
    """Of all answers together, from the first request to the last token."""
    began = time.perf_counter()
    with ThreadPoolExecutor(len(prompts)) as pool:
        answers = list(pool.map(lambda prompt: _ask(port, prompt, tokens), prompts))
    return sum(each.tokens for each in answers) / (time.perf_counter() - began)


def _ask(port: int, prompt: str, tokens: int) -> _Answer:
    """A completion, streamed. Raises EmberError where it is refused."""
    body = {
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    connection = HTTPConnection("127.0.0.1", port, timeout=_PATIENCE)
    headers = {"Content-Type": "application/json"}
    began, first = time.perf_counter(), 0.0
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    response = connection.getresponse()
    if response.status != 200:
        raise EmberError(f"the server refused to be measured: {response.read().decode()[:200]}")
    usage: dict[str, int] = {}
    for line in response:
        if not line.startswith(b"data: {"):
            continue
        first = first or time.perf_counter() - began
        usage = json.loads(line.removeprefix(b"data: ")).get("usage") or usage
    connection.close()
    return _Answer(first_s=first, prompt=usage["prompt_tokens"], tokens=usage["completion_tokens"])


@contextmanager
def _started(engine: str, settings: ServeSettings) -> Iterator[int]:
    """A server of so many places, in a process; gives its port."""
    port = _free_port()
    process = subprocess.Popen(
        _command(engine, settings, port),
        env=environment(settings.threads),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(process, port, engine)
        yield port
    finally:
        process.terminate()
        process.wait()


def _command(engine: str, settings: ServeSettings, port: int) -> list[str]:
    if engine == _LLAMA:
        return [_PEER, "-m", settings.model, "--port", str(port), *_places(settings)]
    given = ["--ctx", str(_window(settings)), "--backend", settings.backend, "--temp", "0"]
    return [sys.executable, "-m", "app", "serve", settings.model, "--port", str(port), *given]


def _places(settings: ServeSettings) -> list[str]:
    """What llama-server is told: as many windows as ember has, each as long, and threads."""
    threads = str(settings.threads or physical_cores())
    window = str(_window(settings) * settings.clients)
    return ["-np", str(settings.clients), "-c", window, "-t", threads]


def _window(settings: ServeSettings) -> int:
    return settings.prefix + settings.tokens + 512


def _wait_for(process: "subprocess.Popen[bytes]", port: int, engine: str) -> None:
    """Until it is ready. Raises EmberError where it ends before."""
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until and process.poll() is None:
        try:
            connection = HTTPConnection("127.0.0.1", port, timeout=_PATIENCE)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise EmberError(f"the server of {engine} does not start: run `{_said(engine)}` to see why")


def _said(engine: str) -> str:
    return "ember serve" if engine == _EMBER else _PEER


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])
