"""What clients ask a server, and how they read what it says: plain HTTP, a socket for each."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from random import Random
from typing import Any

CONTEXT, VOCABULARY = 4096, 611
_SHARED = (40, 300, 800, 2000)
_SHORTEST, _LONGEST = 10, 3000
_MOST_ANSWERED = 40
_SAID = "The robot counted every star it saw, and wrote each down. "
_WAIT_SECONDS = 600.0
NONSENSE: tuple[bytes, ...] = (
    b"",
    b"{",
    b"[1, 2",
    b"\xff\xfe\x00",
    b'{"prompt": 7}',
    b'{"prompt": [999999]}',
    b'{"messages": "Hi"}',
    b'{"prompt": "Hi", "max_tokens": 0}',
    b'{"prompt": "Hi", "temperature": "hot"}',
    json.dumps({"prompt": [5] * (CONTEXT + 1)}).encode(),
)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came: its text, and why it ended."""

    text: str
    ended: str


@dataclass(frozen=True, kw_only=True)
class Question:
    """A request whose answer is the same every time."""

    path: str
    body: Mapping[str, Any]

    def with_stop(self, stop: str) -> "Question":
        """The same, which ends before a text."""
        return Question(path=self.path, body={**self.body, "stop": [stop, "never said"]})


def drawn(rng: Random) -> Question:
    """A prompt of any length, most often one that begins as others do; greedy, or with a seed."""
    body: dict[str, Any] = {"max_tokens": rng.randint(1, _MOST_ANSWERED), "temperature": 0}
    if rng.random() < 0.4:
        body |= {"temperature": rng.choice((0.7, 1.5)), "seed": rng.randrange(1000)}
    if rng.random() < 0.3:
        told = {"role": "system", "content": _SAID * rng.randint(1, 9)}
        asked = {"role": "user", "content": f"{_SAID * rng.randint(0, 3)}{rng.randrange(99)}?"}
        return Question(path="/v1/chat/completions", body={**body, "messages": [told, asked]})
    own = [rng.randrange(3, VOCABULARY) for _ in range(rng.randint(_SHORTEST, 120))]
    shared = rng.choice((0, *_SHARED))
    if not shared and rng.random() < 0.3:
        own = [3 + (7 * at * at) % 600 for at in range(rng.randint(_SHORTEST, _LONGEST))]
    ids = [*(3 + (11 * at * at + shared) % 600 for at in range(shared)), *own][:_LONGEST]
    return Question(path="/v1/completions", body={**body, "prompt": ids})


@contextmanager
def asked(port: int, path: str, body: bytes) -> Iterator[HTTPConnection]:
    """A connection on which a request was sent; it is closed at the end, answered or not."""
    connection = HTTPConnection("127.0.0.1", port, timeout=_WAIT_SECONDS)
    try:
        connection.request("POST", path, body)
        yield connection
    finally:
        connection.close()


def answer_to(port: int, question: Question, *, streams: bool) -> Answer:
    """The whole answer. Raises AssertionError for anything else."""
    body = json.dumps({**question.body, "stream": streams}).encode()
    with asked(port, question.path, body) as connection:
        response = connection.getresponse()
        assert response.status == 200, response.read()
        return streamed(response) if streams else _whole(json.loads(response.read()))


def streamed(response: HTTPResponse) -> Answer:
    """The pieces of a stream, which must come to its end."""
    events = [line[6:] for line in response.read().splitlines() if line.startswith(b"data: ")]
    assert events[-1:] == [b"[DONE]"], f"the stream broke off: {events[-1:]}"
    choices = [json.loads(each)["choices"][0] for each in events[:-1]]
    texts = [each.get("text") or each.get("delta", {}).get("content") or "" for each in choices]
    return Answer(text="".join(texts), ended=choices[-1]["finish_reason"])


def _whole(found: dict[str, Any]) -> Answer:
    choice = found["choices"][0]
    text = choice["text"] if "text" in choice else choice["message"]["content"]
    return Answer(text=text or "", ended=choice["finish_reason"])
