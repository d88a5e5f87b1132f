"""mlx-lm's real server, answering over HTTP with our caches."""

import argparse
import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from mlx_lm import server
from mlx_lm.models.cache import LRUPromptCache

from kvcache import CacheConfig, HotDtype, TwoTierKVCache, mlx_lm
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
    mlx_lm.install(CONFIG)
    remembered = Remembered()
    drafting = ("--draft-model", str(folder), "--num-draft-tokens", "4") if request.param else ()
    provider = server.ModelProvider(_arguments(folder, monkeypatch, *drafting))
    generator = server.ResponseGenerator(provider, remembered)
    http = ThreadingHTTPServer(
        ("127.0.0.1", 0),
        lambda *args, **kwargs: server.APIHandler(
            generator, *args, system_fingerprint="test", **kwargs
        ),
    )
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield Served(http.server_port, remembered)
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
