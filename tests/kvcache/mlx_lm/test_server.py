"""mlx-lm's real server, answering over HTTP with our caches."""

import argparse
import json
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from mlx_lm import server
from mlx_lm.generate import GenerationBatch
from mlx_lm.models.cache import LRUPromptCache

from kvcache import CacheConfig, HotDtype, TwoTierKVCache, mlx_lm
from tests.kvcache.mlx_lm import zoo
from tests.kvcache.mlx_lm.saved_model import save_model
from tests.kvcache.tiny_llama import LAYERS, VOCABULARY, generate, make_model
from tests.patience import patience

CONFIG = CacheConfig(keys="h8", values="h8", hot_dtype=HotDtype.F32, max_tokens=80, hot=16, block=8)
WORDS = [(7 * i + 3) % VOCABULARY for i in range(90)]


class Remembered(LRUPromptCache):  # type: ignore[misc]  # mlx-lm is untyped
    """The server's memory of prompts, in which a test can look."""

    def __init__(self) -> None:
        super().__init__(3)
        self.caches: list[list[Any]] = []

    def insert_cache(self, model: Any, tokens: list[int], cache: list[Any], **kind: str) -> None:
        """Keep what the server keeps."""
        self.caches.append(cache)
        super().insert_cache(model, tokens, cache, **kind)


@dataclass(frozen=True)
class Served:
    """A running server and the prompts that it remembers."""

    port: int
    remembered: Remembered

    def complete(self, words: list[int], count: int) -> tuple[list[int], int]:
        """What follows `words`, and how many of them the server had computed before."""
        body = {"prompt": " ".join(f"w{word}" for word in words), "max_tokens": count}
        request = Request(
            f"http://127.0.0.1:{self.port}/v1/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urlopen(request, timeout=patience(60)) as response:
            answer = json.load(response)
        ids = [int(word[1:]) for word in answer["choices"][0]["text"].split()]
        return ids, answer["usage"]["prompt_tokens_details"]["cached_tokens"]


@pytest.fixture(params=[False, True], ids=["alone", "with a draft"])
def served(
    folder: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Served]:
    drafting = ("--draft-model", str(folder), "--num-draft-tokens", "4") if request.param else ()
    with _serving(folder, monkeypatch, *drafting) as server:
        yield server


@contextmanager
def _serving(folder: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> Iterator[Served]:
    """The server of a folder's model, until it has ended."""
    mlx_lm.install(CONFIG)
    remembered = Remembered()
    provider = server.ModelProvider(_arguments(folder, monkeypatch, *more))
    generator = server.ResponseGenerator(provider, remembered)
    http = ThreadingHTTPServer(
        ("127.0.0.1", 0),
        lambda *args, **kwargs: server.APIHandler(
            generator, *args, system_fingerprint="test", **kwargs
        ),
    )
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    try:
        yield Served(http.server_port, remembered)
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
        generator.stop_and_join()
        mlx_lm.uninstall()


def _arguments(folder: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> argparse.Namespace:
    """The server's own defaults, which its main function alone knows."""
    caught: list[argparse.Namespace] = []
    monkeypatch.setattr(sys, "argv", ["server", "--model", str(folder), *more])
    monkeypatch.setattr(server, "ModelProvider", caught.append)
    monkeypatch.setattr(server, "run", lambda *_: None)
    server.main()
    monkeypatch.undo()
    return caught[0]


def test_it_answers_beyond_the_window_and_goes_on_from_what_it_holds(served: Served) -> None:
    model = make_model()
    cache = mlx_lm.make_prompt_cache(model, CONFIG)
    answer, reused = served.complete(WORDS, 60)
    assert (answer, reused) == (generate(model, WORDS, cache, 60)[0], 0)
    held = served.remembered.caches[-1]
    assert {type(layer) for layer in held} == {TwoTierKVCache}
    assert len(held) in (LAYERS, 2 * LAYERS)
    assert held[0].stats().evicted > 0
    # As a chat template ends the answer, with another token than the model's last.
    for ended in (answer, answer[:-1]):
        more = [*WORDS, *ended, 5, 6]
        anew = mlx_lm.make_prompt_cache(model, CONFIG)
        generate(model, WORDS, anew, len(ended))
        follow, reused = served.complete(more, 10)
        assert reused == len(more) - 2
        assert follow == generate(model, [5, 6], anew, 10)[0]


def test_four_clients_are_answered_together(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each as it is alone; the prompts share what they begin with."""
    model = make_model()
    prompts = [WORDS[:length] for length in (90, 37, 64, 5)]
    rows, step = list[int](), GenerationBatch.next

    def counted(batch: Any) -> Any:
        rows.append(len(batch))
        return step(batch)

    with _serving(folder, monkeypatch) as served, ThreadPoolExecutor(4) as clients:
        monkeypatch.setattr(GenerationBatch, "next", counted)
        answers = list(clients.map(lambda words: served.complete(words, 40)[0], prompts))
    assert max(rows) > 1
    for answer, prompt in zip(answers, prompts, strict=True):
        cache = mlx_lm.make_prompt_cache(model, CONFIG)
        assert answer == generate(model, prompt, cache, 40)[0]


def test_a_model_that_cannot_be_served_is_named_at_load_and_to_who_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with _serving(save_model(zoo.make("mamba"), tmp_path), monkeypatch) as served:
        for _ in range(2):
            with pytest.raises(HTTPError) as answered:
                served.complete(WORDS[:5], 2)
            said = json.load(answered.value)["error"]
            assert said.startswith("mamba has no layer whose keys and values")
        with urlopen(f"http://127.0.0.1:{served.port}/health", timeout=patience(60)) as response:
            assert json.load(response) == {"status": "ok"}
    errors = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert errors[0] == (f"this model cannot be served: {said}")
