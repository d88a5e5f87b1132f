"""One connection: mlx-lm's handler, told what a server of one model and of some clients needs.

Other than there, a request is checked whole before it is queued, every error has OpenAI's shape,
and an answer is ended where its client has gone.
"""

import hmac
import json
import select
import socket
import time
from collections.abc import Callable
from http import HTTPStatus
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit

from mlx_lm import server

from app.options import Think
from app.sampling import Sampling
from app.serve import bodies
from app.serve.generator import Generator, GoneError
from app.serve.refusal import RefusalError
from app.serve.row import Prepared
from app.serve.server_settings import ServerSettings, is_loopback
from kvcache.errors import EmberError, short

_READERS: dict[str, Callable[[bodies.Body], bodies.Body]] = {
    "/v1/completions": bodies.text,
    "/v1/chat/completions": bodies.chat,
    "/chat/completions": bodies.chat,
}
_MOST_BYTES = 32 << 20
_PENALIZED = 64  # tokens, as in ember's other commands


class Handler(server.APIHandler):
    """Answers one request. report: told of each, in a line, once it has ended."""

    _streams = False
    # Seconds for a client to send what it asks, or to take what it is sent.
    timeout = 60
    error_content_type = "application/json"
    error_message_format = (
        '{"error": {"message": "HTTP error %(code)d", "type": "invalid_request_error", '
        '"param": null, "code": null}}'
    )

    def __init__(
        self,
        generator: Generator,
        settings: ServerSettings,
        report: Callable[[str], None],
        *args: Any,
    ) -> None:
        self._settings, self._report = settings, report
        self._prepared: Prepared | None = None
        self._limits_answer, self._begun = False, time.monotonic()
        self.max_tokens = 0
        super().__init__(generator, *args)

    # -- what is asked --

    def do_GET(self) -> None:  # noqa: N802 - http.server looks for it
        """The model, the server's health and its figures."""
        self._answering(self._get)

    def do_POST(self) -> None:  # noqa: N802 - http.server looks for it
        """Completions."""
        self._answering(self._post)

    def _answering(self, work: Callable[[], None]) -> None:
        """Do it, for a client who may ask; what it may not, or cannot, is an error it can read."""
        try:
            self._check_client()
            work()
        except RefusalError as refusal:
            self._refuse(refusal)
        except EmberError as error:
            self._refuse(RefusalError(str(error), status=HTTPStatus.INTERNAL_SERVER_ERROR))
        except (ConnectionError, TimeoutError):
            self._report(f"{self._asked()}: the client has gone")
            self.close_connection = True

    def _check_client(self) -> None:
        """Raise RefusalError for a web page of elsewhere, or without the key."""
        origin = self.headers.get("Origin")
        allowed = self._settings.origins
        if origin and not ({"*", origin} & set(allowed)):
            host = urlsplit(origin).hostname or ""
            if not is_loopback(host):
                raise RefusalError(
                    f"web pages of {short(origin)} may not ask: --allow-origin lets them",
                    status=HTTPStatus.FORBIDDEN,
                )
        given = self.headers.get("Authorization", "").removeprefix("Bearer ").encode()
        is_open = self._path() == "/health" or not self._settings.key
        if not is_open and not hmac.compare_digest(given, self._settings.key.encode()):
            raise RefusalError(
                "this server wants its API key, as `Authorization: Bearer KEY`",
                status=HTTPStatus.UNAUTHORIZED,
                code="invalid_api_key",
            )

    def _get(self) -> None:
        path = self._path()
        if path == "/health":
            self.handle_health_check()
        elif path == "/stats":
            self._send(HTTPStatus.OK, self.response_generator.figures.as_dict())
        elif path == "/v1/models" or path.startswith("/v1/models/"):
            self.handle_models_request()
        else:
            raise self._no_such_path()

    def handle_health_check(self) -> None:
        """Whether requests are taken."""
        healthy = self.response_generator.is_healthy and not self.response_generator.is_ending
        status = HTTPStatus.OK if healthy else HTTPStatus.SERVICE_UNAVAILABLE
        self._send(status, {"status": "ok" if healthy else "unavailable"})

    def handle_models_request(self) -> None:
        """The one model, by its name."""
        served = self.response_generator.served
        model = {
            "id": served.names[0],
            "object": "model",
            "created": self.created,
            "owned_by": "ember",
            "name": served.loaded.title,
            "context_length": served.window,
        }
        if asked := self._path().removeprefix("/v1/models").strip("/"):
            self._check_model(asked)
            self._send(HTTPStatus.OK, model)
        else:
            self._send(HTTPStatus.OK, {"object": "list", "data": [model]})

    def _post(self) -> None:
        path = self._path()
        if path not in _READERS:
            raise self._no_such_path()
        body = _READERS[path](bodies.read(self._raw()))
        self._check_model(body.get("model", ""))
        self._limits_answer = "max_tokens" in body or "max_completion_tokens" in body
        body.setdefault("model", self.response_generator.served.names[0])
        args = self.response_generator.cli_args
        penalty = args.repeat_penalty if args.repeat_penalty != 1 else 0.0
        body = {
            "repetition_penalty": penalty,
            "repetition_context_size": _PENALIZED,
            **body,
        }
        # From here on mlx-lm reads it, as it came.
        whole = json.dumps(body).encode()
        del self.headers["Content-Length"]
        self.headers["Content-Length"] = str(len(whole))
        self.path, self.rfile = path, BytesIO(whole)
        super().do_POST()

    def _raw(self) -> bytes:
        """The bytes of a request. Raises RefusalError."""
        said = self.headers.get("Content-Length")
        if said is None:
            raise RefusalError("got no Content-Length", status=HTTPStatus.LENGTH_REQUIRED)
        if not (said.isascii() and said.isdigit()):
            raise RefusalError(f"got Content-Length {short(said)}, expected a number of bytes")
        if len(said) > 18 or int(said) > _MOST_BYTES:
            raise RefusalError(
                f"got {short(said)} bytes, expected at most {_MOST_BYTES}",
                status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            )
        raw = self.rfile.read(int(said))
        if len(raw) < int(said):
            raise GoneError
        return raw

    def _check_model(self, asked: object) -> None:
        """Raise RefusalError for another model than the one that is served."""
        if not isinstance(asked, str):
            raise RefusalError("got model that is no text")
        names = self.response_generator.served.names
        if asked and asked.casefold() not in map(str.casefold, names):
            raise RefusalError(
                f"there is no model {short(asked)} here: this server has {names[0]}",
                status=HTTPStatus.NOT_FOUND,
                code="model_not_found",
            )

    def validate_model_parameters(self) -> None:
        """As mlx-lm does; what is wrong is RefusalError."""
        try:
            super().validate_model_parameters()
        except (ValueError, TypeError) as error:
            raise RefusalError(str(error)) from error
        size = len(self.response_generator.served.tokenizer)
        if any(not 0 <= each < size for each in self.logit_bias or ()):
            raise RefusalError(f"got a logit_bias of token ids beyond 0 to {size - 1}")

    # -- the answer --

    def handle_completion(self, request: server.CompletionRequest, stop_words: list[str]) -> None:
        """Queue it once it is known to fit, and answer."""
        prepared = self._prepared = self.response_generator.prepare(
            request,
            sampling=self._sampling(),
            template=self.chat_template_kwargs or {},
            is_gone=lambda: _is_gone(self.connection),
        )
        if not self._limits_answer:
            room = self.response_generator.served.window - len(prepared.tokens)
            self.max_tokens = min(self.max_tokens, max(room, 1))
        super().handle_completion(prepared, stop_words)
        self._report(self._told(prepared))

    def _sampling(self) -> Sampling:
        """How tokens are drawn. Raises RefusalError."""
        try:
            return Sampling(
                temperature=self.temperature,
                top_p=self.top_p or 1.0,
                top_k=self.top_k,
                min_p=self.min_p,
                seed=self.seed,
            )
        except EmberError as error:
            raise RefusalError(str(error)) from error

    def generate_response(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """mlx-lm's, with what OpenAI's clients read of tokens and of thinking."""
        kwargs.update(token_logprobs=None, top_tokens=None)
        made: dict[str, Any] = super().generate_response(*args, **kwargs)
        assert self._prepared is not None
        news, self._prepared.unsent = self._prepared.unsent, []
        self._prepared.told += len(news)
        if "usage" in made:
            made["usage"] |= self._counted(made["usage"])
        (choice,) = made["choices"]
        if self.logprobs:
            choice["logprobs"] = self._logprobs(news)
        said = choice.get("message", choice.get("delta", {}))
        thought = said.pop("reasoning", "")
        if thought and self._settings.think is Think.SHOW:
            # By both names that clients know.
            said |= {"reasoning": thought, "reasoning_content": thought}
        return made

    def _logprobs(self, news: list[server.Response]) -> dict[str, Any]:
        """Of tokens as they are spelled, but for one that ends the answer."""
        tokenizer = self.response_generator.served.loaded.tokenizer
        told = [each for each in news if each.token not in tokenizer.eog_ids]

        def of(id_: int, logprob: float) -> dict[str, Any]:
            spelled = tokenizer.token_bytes(id_)
            text = spelled.decode(errors="replace") or tokenizer.text(id_)
            return {"token": text, "logprob": logprob, "bytes": list(spelled)}

        likeliest = [[of(one["id"], one["logprob"]) for one in each.top_tokens] for each in told]
        own = [of(each.token, each.logprob) for each in told]
        if self.object_type == "text_completion":
            return {
                "tokens": [each["token"] for each in own],
                "token_logprobs": [each["logprob"] for each in own],
                "top_logprobs": [
                    {one["token"]: one["logprob"] for one in top} for top in likeliest
                ],
            }
        every = zip(own, likeliest, strict=True)
        return {"content": [each | {"top_logprobs": top} for each, top in every]}

    def completion_usage_response(self, *args: Any) -> dict[str, Any]:
        """mlx-lm's, of a stream's kind."""
        made: dict[str, Any] = super().completion_usage_response(*args)
        made["usage"] |= self._counted(made["usage"])
        return made | {"object": self.object_type}

    def _counted(self, usage: dict[str, Any]) -> dict[str, int]:
        """Tokens of the answer; mlx-lm counts pieces of it."""
        assert self._prepared is not None
        told = self._prepared.told
        return {"completion_tokens": told, "total_tokens": usage["prompt_tokens"] + told}

    # -- what is sent --

    def _send(self, status: HTTPStatus, found: object) -> None:
        data = json.dumps(found).encode()
        # What was not sent yet of another answer.
        self._headers_buffer: list[bytes] = []
        self._set_completion_headers(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _refuse(self, refusal: RefusalError) -> None:
        """An error, as a whole answer or as the end of a stream that has begun."""
        self._report(f"{self._asked()}: {int(refusal.status)} {refusal}")
        self.close_connection = True
        try:
            if self._streams:
                self.wfile.write(f"data: {json.dumps(refusal.as_dict())}\n\n".encode())
            else:
                self._send(refusal.status, refusal.as_dict())
        except (ConnectionError, TimeoutError):
            return

    def _set_stream_headers(self, status_code: int = 200) -> None:
        super()._set_stream_headers(status_code)
        self._streams = True

    def log_message(self, *_: object) -> None:
        """Nothing: `report` is told."""

    def _path(self) -> str:
        return urlsplit(self.path).path.rstrip("/")

    def _asked(self) -> str:
        return f"{self.command} {short(self._path())}"

    def _no_such_path(self) -> RefusalError:
        return RefusalError(
            f"there is nothing at {self._asked()}", status=HTTPStatus.NOT_FOUND, code="not_found"
        )

    def _told(self, prepared: Prepared) -> str:
        seconds = time.monotonic() - self._begun
        return (
            f"{self._asked()}: {len(prepared.tokens)} tokens read, {prepared.told} answered, "
            f"{seconds:.1f} s"
        )


def _is_gone(connection: socket.socket) -> bool:
    """Whether a client that has nothing more to send has closed its end."""
    if not select.select([connection], [], [], 0)[0]:
        return False
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except OSError:
        return True
