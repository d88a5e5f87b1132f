"""What a server does not answer, and that it says so in OpenAI's own words, and lives."""

import json
import socket
from http.client import HTTPConnection
from typing import Any

import openai
import pytest

from app.options import UsageError
from app.serve.server_settings import ServerSettings
from tests.app.serve.conftest import EXACT, Serve, Served
from tests.app.serve.test_answers import ask, complete, prompt
from tests.patience import patience

CHAT = "/v1/chat/completions"
USER = {"role": "user", "content": "Hi"}


def post(
    served: Served, body: bytes | object, path: str = CHAT, **headers: str
) -> tuple[int, dict[str, Any]]:
    """The status and the JSON that a request is answered with."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection = HTTPConnection("127.0.0.1", served.port, timeout=patience(60))
    connection.request("POST", path, raw, headers)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"messages": "Hi"}, "got messages that are a text, expected a list"),
        ({"messages": []}, "got messages that are an empty list"),
        ({"messages": None}, "got messages that are missing"),
        ({"messages": ["Hi"]}, "messages[0] is a text, expected an object"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0] has no content"),
        ({"messages": [{"role": "user", "content": 7}]}, "content that is a number"),
        ({"messages": [{"role": "king", "content": "Hi"}]}, 'messages[0] has role "king"'),
        ({"messages": [{"content": "Hi"}]}, "messages[0] has role null"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "reads text alone"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "has no place for tools"),
        ({"tools": {}}, "got tools that are an object"),
        ({"tool_choice": "required"}, "tool_choice is auto or none"),
        ({"n": 2}, "n is not supported: got 2"),
        ({"response_format": {"type": "json_object"}}, "response_format is not supported"),
        ({"temperature": "hot"}, "temperature must be of type"),
        ({"temperature": 1000}, "got temp=1000"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"top_logprobs": 50}, "top_logprobs must be at most 11"),
        ({"stop": [1]}, "got stop that is no text"),
        ({"seed": "x"}, "expected a whole number"),
        ({"logit_bias": {"100000": 1}}, "logit_bias of token ids beyond 0 to 610"),
        ({"logit_bias": {"x": 1}}, "logit_bias must be a dict of int to float"),
        ({"logit_bias": {"1": "a"}}, "got a logit_bias that is no number"),
        ({"stream": "yes"}, "stream must be of type bool"),
        ({"stream_options": 1}, "got stream_options that is a number"),
        ({"chat_template_kwargs": {"x": 1}}, "takes enable_thinking alone"),
        ({"model": 3}, "got model that is no text"),
    ],
)
def test_nonsense_is_400_with_what_to_write(served: Served, change: Any, said: str) -> None:
    status, answer = post(served, {"messages": [USER], "max_tokens": 2, **change})
    assert status == 400, answer
    assert said in answer["error"]["message"]
    assert answer["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[1]",
        b"\xff\xfe{}",
        b'{"temperature": NaN}',
        b'{"temperature": 1e999}',
        b"[" * 9999,
    ],
)
def test_what_is_no_json_object_is_400(served: Served, raw: bytes) -> None:
    status, answer = post(served, raw)
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize(
    ("length", "status"),
    [("-5", 400), ("x", 400), ("9" * 40, 413), (str(1 << 40), 413), (None, 411)],
)
def test_lengths_that_cannot_be_are_refused_at_once(
    served: Served, length: str | None, status: int
) -> None:
    with socket.create_connection(("127.0.0.1", served.port), patience(30)) as raw:
        said = f"Content-Length: {length}\r\n" if length else ""
        raw.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\n{said}\r\n".encode())
        assert f" {status} ".encode() in raw.recv(100)


def test_a_server_that_met_nonsense_goes_on(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port), patience(30)) as raw:
        raw.sendall(b"\x16\x03\x01 no HTTP\r\n\r\n")
        assert b"HTTP error 400" in raw.recv(1000) + raw.recv(1000)
    with socket.create_connection(("127.0.0.1", served.port), patience(30)) as raw:
        raw.sendall(f"POST {CHAT} HTTP/1.1\r\nContent-Length: 50\r\n\r\n{{".encode())
    assert ask(served, "Still there?").choices[0].message.content


def test_another_model_is_404_and_never_loaded(served: Served) -> None:
    with pytest.raises(openai.NotFoundError, match="no model /etc/passwd here") as refused:
        served.client.chat.completions.create(model="/etc/passwd", messages=[USER])  # type: ignore[list-item]
    assert refused.value.code == "model_not_found"
    assert [each.id for each in served.client.models.list()] == ["small"]
    assert served.client.models.retrieve("small").id == "small"
    with pytest.raises(openai.NotFoundError):
        served.client.models.retrieve("large")
    assert post(served, {}, path="/v1/embeddings")[0] == 404


def test_a_prompt_that_cannot_fit_is_400_with_the_figures(served: Served) -> None:
    window = served.generator.served.window
    with pytest.raises(
        openai.BadRequestError, match=f"4200 tokens, but the window holds {window}"
    ) as e:
        complete(served, prompt(4200))
    assert e.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="got no prompt"):
        complete(served, [], 1)
    with pytest.raises(openai.BadRequestError, match="token ids beyond 0 to 610"):
        complete(served, [611])


def test_without_the_key_nobody_is_answered(serve: Serve) -> None:
    served = serve(ServerSettings(cache=EXACT, key="secret"))
    with pytest.raises(openai.AuthenticationError) as refused:
        served.client_with("guessed").models.list()
    assert refused.value.code == "invalid_api_key"
    assert [each.id for each in served.client_with("secret").models.list()] == ["small"]
    assert post(served, {"messages": [USER]})[0] == 401


def test_web_pages_of_elsewhere_are_refused(serve: Serve) -> None:
    served = serve(ServerSettings(cache=EXACT, origins=("https://ui.example",)))
    body = {"messages": [USER], "max_tokens": 1}
    assert post(served, body, Origin="https://evil.example")[0] == 403
    assert post(served, body, Origin="https://ui.example")[0] == 200
    assert post(served, body, Origin="http://localhost:3000")[0] == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "::", "box.example"])
def test_other_machines_are_let_in_with_a_key_alone(host: str) -> None:
    with pytest.raises(UsageError, match="give an --api-key, or EMBER_API_KEY"):
        ServerSettings(host=host)
    assert ServerSettings(host=host, key="secret").host == host
    assert ServerSettings(host="localhost").key == ServerSettings(host="::1").key == ""
