"""Requests to answers, between connections and the one thread that computes.

mlx-lm's `ResponseGenerator`: its queue, its thread, its prompts and segments. Other than there,
prompts are tokenized, and refused, on their connections' threads; rows join by a budget; and
seeds, stop strings and clients that leave are the rows' own affair.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from queue import Empty
from threading import Event
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
from mlx_lm import server
from mlx_lm.generate import TextStateMachine
from mlx_lm.models.cache import LRUPromptCache

from app.ranks.rank_running import make_running
from app.sampling import Sampling
from app.serve.model_provider import LoadedServer, ModelProvider
from app.serve.refusal import RefusalError
from app.serve.row import NO_TOKEN, Failure, Prepared, Row, Told
from app.serve.running import Running
from app.serve.server_figures import Figures
from kvcache.errors import EmberError

_IDLE_SECONDS = 0.1
# How often a connection that waits looks whether its client has gone.
_LOOK_SECONDS = 0.2
# What a client is told of who waits, so that it does: a stream's keep-alive.
_ALIVE_SECONDS = 5.0
_ENDING = "the server is shutting down"


class GoneError(ConnectionError):
    """Nobody waits for the answer any more."""


class Generator(server.ResponseGenerator):
    """Answers until it is told to end.

    ended: set once nothing is computed any more. failure: what ended it unasked.
    """

    def __init__(self, provider: ModelProvider) -> None:
        self.ended = Event()
        self.failure: BaseException | None = None
        self._until: float | None = None
        self._running: Running | None = None
        super().__init__(provider, LRUPromptCache(0))

    # -- on the connections' threads --

    @property
    def served(self) -> LoadedServer:
        """The model; waits until it is loaded."""
        found: LoadedServer = self.model_provider.ready.result()
        return found

    @property
    def figures(self) -> Figures:
        """The newest look at what is done."""
        running = self._running
        return Figures() if running is None else running.figures

    @property
    def is_ending(self) -> bool:
        """Whether it takes no more requests."""
        return self._until is not None or self.ended.is_set()

    def prepare(
        self,
        request: server.CompletionRequest,
        *,
        sampling: Sampling,
        template: dict[str, Any],
        is_gone: Callable[[], bool],
    ) -> Prepared:
        """The request with its prompt as ids. Raises RefusalError where it cannot be answered."""
        if self.is_ending:
            raise RefusalError(_ENDING, status=HTTPStatus.SERVICE_UNAVAILABLE)
        tokens, segments, kinds, state = self._prompt(request, template)
        window = self.served.window
        if not tokens:
            raise RefusalError("the prompt is empty: give some text")
        if len(tokens) > window:
            raise RefusalError(
                f"the prompt has {len(tokens)} tokens, but the window holds {window}: shorten it, "
                "or start the server with a larger --ctx",
                code="context_length_exceeded",
            )
        return Prepared(
            **vars(request),
            tokens=tokens,
            segments=segments,
            kinds=kinds,
            state=state,
            sampling=sampling,
            is_gone=is_gone,
        )

    def generate(
        self,
        request: Prepared,
        generation_args: server.GenerationArguments,
        progress_callback: Callable[[int, int], None] | None = None,
    ) -> tuple[server.GenerationContext, Iterator[server.Response]]:
        """Queue a request; the answer comes as it is computed, or GoneError or what failed."""
        tokenizer = self.served.tokenizer
        row = Row(request, generation_args, tokenizer)
        is_chat = request.request_type == "chat"
        _, machine = self._make_state_machine(None, tokenizer, ())
        context = server.GenerationContext(
            has_tool_calling=tokenizer.has_tool_calling,
            has_thinking=tokenizer.has_thinking,
            tool_parser=tokenizer.tool_parser,
            text_sm=machine if is_chat else TextStateMachine(),
            initial_state=request.state,
            prompt=request.tokens,
        )
        self.requests.put(row)
        return context, self._answer(row, context, progress_callback or (lambda *_: None))

    def stop_and_join(self, patience: float = 0.0) -> None:
        """Take no more requests; answers that are not finished in so many seconds are cut."""
        self._until = time.monotonic() + patience
        super().join()

    def _prompt(
        self, request: server.CompletionRequest, template: dict[str, Any]
    ) -> tuple[list[int], list[list[int]], list[str], str]:
        """Ids, their segments and the segments' kinds, and how the answer begins."""
        tokenizer = self.served.tokenizer
        if isinstance(request.prompt, list):
            if not all(0 <= each < len(tokenizer) for each in request.prompt):
                raise RefusalError(f"got token ids beyond 0 to {len(tokenizer) - 1}")
            return request.prompt, [request.prompt], ["assistant"], "normal"
        asked = SimpleNamespace(chat_template_kwargs=template)
        try:
            tokens, segments, kinds, state, _ = self._tokenize(tokenizer, request, asked)
        except (EmberError, ValueError) as error:
            raise RefusalError(str(error)) from error
        return tokens, segments, kinds, state

    def _answer(
        self,
        row: Row,
        context: server.GenerationContext,
        progress: Callable[[int, int], None],
    ) -> Iterator[server.Response]:
        request = row.request
        try:
            while (told := self._next(row, progress)) is not None:
                if isinstance(told, Failure):
                    raise told.error
                if isinstance(told, tuple):
                    progress(*told)
                    continue
                context.prompt_cache_count = request.cached = row.cached
                if told.token != NO_TOKEN:
                    request.unsent.append(told)
                yield told
        finally:
            row.leave()

    def _next(self, row: Row, progress: Callable[[int, int], None]) -> Told:
        """What is told next; raises GoneError as soon as the client has gone."""
        alive = time.monotonic() + _ALIVE_SECONDS
        while True:
            if row.request.is_gone():
                raise GoneError
            try:
                return row.told.get(timeout=_LOOK_SECONDS)
            except Empty:
                if self.ended.is_set() and row.told.empty():
                    raise RefusalError(_ENDING, status=HTTPStatus.SERVICE_UNAVAILABLE) from None
            if time.monotonic() > alive:
                progress(0, len(row.request.tokens))
                alive = time.monotonic() + _ALIVE_SECONDS

    # -- on the thread that computes --

    def _run_generate(self) -> None:
        try:
            self._generate()
        except BaseException as error:  # noqa: BLE001 - who waits for the thread's end raises it
            self._generation_failed, self.failure = True, error
        finally:
            self._running = None
            self.ended.set()
            # Streams that outlive their thread abort the process at exit.
            mx.clear_streams()

    def _generate(self) -> None:
        provider = self.model_provider
        provider.load_default()
        served = self.served
        self._running = running = make_running(
            provider.company, provider.engine, served.budget, served.tokenizer, provider.waking()
        )
        try:
            while not self._is_over(running):
                self._take(running)
                if len(running):
                    running.step()
                else:
                    running.look()
        finally:
            self._refuse(running)
            running.cut_all()
            running.close()
            self.model_provider.reset()

    def _is_over(self, running: Running) -> bool:
        """Whether it is to end, and all that runs has ended or had its time."""
        if self._until is None:
            return False
        self._refuse(running)
        return not len(running) or time.monotonic() > self._until

    def _take(self, running: Running) -> None:
        """All requests that have come; waits a moment where there is nothing else to do."""
        for row in self._come(None if len(running) else _IDLE_SECONDS):
            running.take(row)

    def _come(self, patience: float | None) -> Sequence[Row]:
        found: list[Row] = []
        while (row := self._next_request(None if found else patience)) is not None:
            found.append(row)
        return found

    def _share_request(self, request: Row | None) -> Row | None:
        """Other ranks are told of rows that begin, not of requests that wait."""
        return request

    def _refuse(self, running: Running) -> None:
        """Tell those that have no place yet that they get none."""
        for row in (*running.take_waiting(), *self._come(None)):
            error = RefusalError(_ENDING, status=HTTPStatus.SERVICE_UNAVAILABLE)
            row.told.put(Failure(error=error))
