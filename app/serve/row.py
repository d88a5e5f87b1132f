"""One request among those that are computed together: its tokens to text, until it ends.

Knows no batch and no connection.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from queue import SimpleQueue
from threading import Event
from typing import Any, TypeAlias

import mlx.core as mx
import numpy as np
from mlx_lm import server
from mlx_lm.tokenizer_utils import TokenizerWrapper

from app.sampling import Sampling, cpu_drawer, drawer
from app.serve.refusal import RefusalError
from app.stopping import StopStrings
from kvcache.config import on_gpu

_LENGTH, _STOP = "length", "stop"
# Of a piece of text that came with no token of its own.
NO_TOKEN = -1


@dataclass(kw_only=True)
class Prepared(server.CompletionRequest):
    """A request whose prompt is known to fit.

    segments, kinds: of the prompt, where caches are worth keeping. state: what an answer begins
    with (`TextStateMachine`). sampling: how tokens are drawn. is_gone: whether nobody waits for
    the answer any more. cached: tokens of the prompt that were kept. unsent: tokens of the answer
    that no chunk has told yet. told: how many were.
    """

    tokens: list[int]
    segments: list[list[int]]
    kinds: list[str]
    state: str
    sampling: Sampling
    is_gone: Callable[[], bool]
    cached: int = 0
    unsent: list[server.Response] = field(default_factory=list)
    told: int = 0


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What ends an answer that the server cannot finish."""

    error: Exception


# What the computing thread says of a request: a piece of the answer, how much of the prompt is
# read, the end, or what it failed by.
Told: TypeAlias = server.Response | tuple[int, int] | Failure | None


class Row:
    """A request, from its place in the queue to the last token of its answer."""

    def __init__(
        self, request: Prepared, args: server.GenerationArguments, tokenizer: TokenizerWrapper
    ) -> None:
        self.request, self.args = request, args
        self.told: SimpleQueue[Told] = SimpleQueue()
        # Tokens that were kept of its prompt, and that its cache was given by now.
        self.cached = self.held = 0
        # The kinds of the segments that are still to come.
        self.kinds = list(request.kinds)
        self._detokenizer = tokenizer.detokenizer
        self._stops = StopStrings(args.stop_words)
        self._left = Event()

    def begin(self, cached: int) -> None:
        """It has a place; so many tokens of its prompt were kept."""
        self.cached = self.held = cached

    def read(self, done: int, total: int) -> None:
        """So many of the prompt's other tokens are read, of all of them."""
        self.held = self.cached + done
        self.told.put((done, total))

    def leave(self) -> None:
        """Nobody waits for it any more; any thread may say so."""
        self._left.set()

    @property
    def has_left(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._left.is_set()

    def add(self, token: int, logprobs: mx.array, finish: str | None) -> bool:
        """Tell the next token; whether the answer has ended, by it or by a stop string."""
        self.held += 1
        if finish != _STOP:
            self._detokenizer.add_token(token)
        if finish is not None:
            self._detokenizer.finalize()
        text = self._stops.add(self._detokenizer.last_segment)
        if finish is not None:
            text += self._stops.finish()
        if self._stops.stopped:
            finish = _STOP
        if text and finish == _STOP:
            # mlx-lm's handler shows nothing of a piece that ends so.
            self.told.put(server.Response(text, NO_TOKEN, 0.0, None, ()))
            text = ""
        self._tell(text, token, logprobs, finish)
        if finish is not None:
            self.told.put(None)
        return finish is not None

    def fail(self, error: Exception) -> None:
        """It cannot be answered, for no fault of its client's."""
        told = f"the answer failed by {type(error).__name__}: {error}"
        status = HTTPStatus.INTERNAL_SERVER_ERROR
        self.told.put(Failure(error=RefusalError(told, status=status)))

    def cut(self) -> None:
        """End the answer here, as if it had its length."""
        held = self._stops.finish()
        self.told.put(server.Response(held, NO_TOKEN, 0.0, _LENGTH, ()))
        self.told.put(None)

    def _tell(self, text: str, token: int, logprobs: mx.array, finish: str | None) -> None:
        wants = self.args.logprobs
        likeliest = _likeliest(logprobs, self.args.top_logprobs) if wants else ()
        own = float(np.asarray(logprobs[token].astype(mx.float32))) if wants else 0.0
        self.told.put(server.Response(text, token, own, finish, likeliest))


def _likeliest(logprobs: mx.array, count: int) -> tuple[dict[str, Any], ...]:
    """The likeliest tokens, the first before the others."""
    if count <= 0:
        return ()
    values = np.asarray(logprobs.astype(mx.float32))
    ids = np.argsort(-values)[:count].tolist()
    return tuple({"id": id_, "logprob": float(values[id_])} for id_ in ids)


def greedy(logits: mx.array) -> mx.array:
    """The likeliest token of each row; one function, so that a batch asks it once for all rows."""
    if on_gpu():
        return mx.argmax(logits, axis=-1)
    # On a CPU MLX takes several times as long.
    rows = np.asarray(logits.astype(mx.float32))
    return mx.array(rows.argmax(axis=-1).astype(np.uint32))


def sampler(sampling: Sampling, size: int) -> Callable[[mx.array], mx.array]:
    """What draws for one row of a vocabulary of `size` tokens.

    A seed draws the same whoever is beside it, so not on a GPU, whose seed is everybody's.
    """
    if sampling.is_greedy:
        return greedy
    return drawer(sampling, size) if sampling.seed is None else cpu_drawer(sampling)
