"""The chat without its screen: what is said, asked, stopped and saved.

Runs on the UI thread and never waits: `tick` takes what the model's jobs have
given since. Knows no widget; the screen reads its state after each tick.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum

from app.generation import Finished, PrefillProgress, TextChunk, Truncated
from app.job import Job
from app.sampling import Sampling
from app.sessions.chat import Attachment, Chat, ChatMessage, Figures, State, title_of
from app.sessions.schema import StoreError
from app.sessions.store import SessionStore
from app.transcript import Completion, FinishReason
from app.tui.mentions import attached
from app.tui.meter import Meter
from app.tui.service import (
    AnswerEvent,
    Ask,
    LoadEvent,
    ModelInfo,
    ModelService,
    Prepared,
    TooLong,
)
from kvcache import EmberError
from models.chat_template import Role
from models.progress import Progress

_SAVE_SECONDS = 1.0


class Phase(Enum):
    """What the model is doing."""

    NO_MODEL = "no model"
    LOADING = "loading"
    READY = "ready"
    READING = "reading"
    ANSWERING = "answering"


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A question as typed."""

    text: str
    attachments: tuple[Attachment, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that went wrong: what, why, and the details to hand on."""

    title: str
    cause: str


@dataclass(kw_only=True)
class Fetching:
    """A download that runs. progress: its last report."""

    spec: str
    job: Job[Progress]
    progress: Progress | None = None
    stopped: bool = False


@dataclass(frozen=True, kw_only=True)
class AnswerSettings:
    """How answers are made."""

    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = 512
    stop: tuple[str, ...] = ()


class ChatController:
    """One chat with one model."""

    def __init__(
        self,
        service: ModelService,
        settings: AnswerSettings | None = None,
        *,
        system: str = "",
        store: SessionStore | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.default_system = system
        self.chat = Chat(system=system)
        self.settings = settings or AnswerSettings()
        self.model: ModelInfo | None = None
        self.phase = Phase.NO_MODEL
        self.stopping = False
        self.progress: Progress | None = None
        self.prefill: PrefillProgress | None = None
        self.problem: Problem | None = None
        self.too_long: TooLong | None = None
        self.fetching: Fetching | None = None
        self.queued: Draft | None = None
        self.current: ChatMessage | None = None
        self.last: Completion | None = None
        self.notices: list[str] = []
        self.meter = Meter()
        self._service, self._clock = service, clock
        self.store = store or SessionStore.in_memory()
        self._load: Job[LoadEvent] | None = None
        self._answer: Job[AnswerEvent] | None = None
        self._ask: Ask | None = None
        self._before = ""
        self._seen = 0
        self._saved_at = 0.0
        self._save_failed = False

    @property
    def busy(self) -> bool:
        """Whether a model is loading or answering."""
        return self.phase in (Phase.LOADING, Phase.READING, Phase.ANSWERING)

    # -- what the user does --

    def load(self, spec: str) -> None:
        """Load a model in place of the present one; the chat stays."""
        self._require_idle()
        if self.phase is Phase.LOADING:
            raise EmberError("a model is loading: Esc stops it")
        self.problem = None
        self.model = None
        self.phase, self.progress = Phase.LOADING, None
        self._load = self._service.load(spec)

    def use(self, spec: str) -> None:
        """Load a model, fetched first where it is not on this machine."""
        if self._service.is_here(spec):
            self.load(spec)
        else:
            self.fetch(spec)

    def fetch(self, spec: str) -> None:
        """Download a model beside the chat, then load it once nothing else runs."""
        if self.fetching is not None:
            raise EmberError(f"{self.fetching.spec} is being fetched: wait for it, or stop it")
        self.problem = None
        self.fetching = Fetching(spec=spec, job=self._service.fetch(spec))

    def stop_fetch(self) -> None:
        """Stop the download."""
        if self.fetching is not None:
            self.fetching.stopped = True
            self._service.cancel_fetch()

    def ask(self, draft: Draft, editing: ChatMessage | None = None) -> None:
        """Ask, or ask an earlier question anew; files that the text mentions go along."""
        known = {each.name for each in draft.attachments}
        mentioned = tuple(each for each in attached(draft.text) if each.name not in known)
        draft = Draft(text=draft.text, attachments=draft.attachments + mentioned)
        if editing is not None and editing in self.chat.messages:
            self.edit(editing, draft)
        else:
            self.send(draft)

    def unqueue(self) -> Draft:
        """Take back the question that waits."""
        assert self.queued is not None
        draft, self.queued = self.queued, None
        return draft

    def send(self, draft: Draft) -> None:
        """Ask; while the model is busy, one question waits."""
        if self.phase is not Phase.READY:
            if self.queued is not None:
                raise EmberError("one question waits already; Esc stops the answer")
            self.queued = draft
            return
        question = ChatMessage(role=Role.USER, text=draft.text, attachments=draft.attachments)
        self.chat.messages.append(question)
        self.chat.title = self.chat.title or title_of(self.chat.messages)
        self._save(question)
        self._answer_last()

    def stop(self) -> None:
        """End the load or answer that runs; what has come is kept."""
        if self.busy:
            self.stopping = True
            self._service.cancel()

    def retry(self, *, drop_oldest: bool = False) -> None:
        """Answer the last question again."""
        self._require_ready()
        self._drop_answer()
        if not self.chat.messages:
            raise EmberError("nothing to answer again: ask something first")
        self._answer_last(drop_oldest=drop_oldest)

    def continue_(self) -> None:
        """Go on with the last answer."""
        self._require_ready()
        last = self.chat.messages[-1] if self.chat.messages else None
        if last is None or last.role is not Role.ASSISTANT or not last.text:
            raise EmberError("no answer to go on with: ask something first")
        self._begin(last, continues=True)

    def undo(self) -> Draft:
        """Take back the last question and its answer; returns the question."""
        self._require_ready()
        self._drop_answer()
        if not self.chat.messages:
            raise EmberError("nothing to take back")
        question = self.chat.messages.pop()
        self._cut()
        self.problem = None
        return Draft(text=question.text, attachments=question.attachments)

    def edit(self, question: ChatMessage, draft: Draft) -> None:
        """Ask `question` anew with other words; what followed it is dropped."""
        self._require_ready()
        del self.chat.messages[self.chat.messages.index(question) :]
        self._cut()
        self.send(draft)

    def fork(self, at: ChatMessage | None = None) -> Draft | None:
        """Go on in a copy of the chat that ends with the message `at` (default: the last).

        Where that is a question, the copy ends before it and the question is returned.
        """
        self._require_idle()
        messages = self.chat.messages
        if not messages:
            raise EmberError("nothing to fork yet: ask something first")
        at = at or messages[-1]
        kept = messages[: messages.index(at) + (at.role is Role.ASSISTANT)]
        self.chat = Chat(
            title=f"{self.chat.title} (fork)",
            model=self.chat.model,
            system=self.chat.system,
            messages=[replace(message, id=None) for message in kept],
        )
        self._stored(lambda: self.store.save_all(self.chat))
        self._forget_answer()
        is_question = at.role is Role.USER
        return Draft(text=at.text, attachments=at.attachments) if is_question else None

    def new_chat(self) -> None:
        """Begin another chat; the present one stays saved."""
        self.show_chat(Chat(model=self.chat.model, system=self.default_system))

    def show_chat(self, chat: Chat) -> None:
        """Go on with a saved chat. The model stays."""
        self._require_idle()
        self.chat = chat
        if self.model is not None:
            chat.model = self.model.spec
        self._forget_answer()

    def set_system(self, text: str) -> None:
        """Another system prompt, from the next answer on."""
        self._require_idle()
        self.chat.system = text
        if self.chat.id is not None:
            self._cut()

    def dismiss_too_long(self) -> None:
        """The user keeps the long question unanswered."""
        self.too_long = None

    # -- what the model does --

    def tick(self) -> bool:
        """Take what has come; returns whether anything has."""
        changed = False
        if self._load is not None:
            changed |= self._take_load(self._load)
        if self._answer is not None:
            changed |= self._take_answer(self._answer)
        if self.fetching is not None:
            changed |= self._take_fetch(self.fetching)
        if self.phase is Phase.READY and self.queued is not None and self.too_long is None:
            draft, self.queued = self.queued, None
            self.send(draft)
            changed = True
        return changed

    def _take_fetch(self, fetching: "Fetching") -> bool:
        items = fetching.job.poll()
        if items:
            fetching.progress = items[-1]
        if not fetching.job.ended:
            return bool(items)
        if fetching.stopped or fetching.job.error is not None:
            self.fetching = None
            if fetching.job.error is not None and not fetching.stopped:
                self.problem = _problem(f"{fetching.spec} was not fetched", fetching.job.error)
        elif not self.busy:
            self.fetching = None
            self.load(fetching.spec)
        return True

    def _take_load(self, job: Job[LoadEvent]) -> bool:
        items = job.poll()
        for item in items:
            if isinstance(item, ModelInfo):
                self.model = item
                self.chat.model = item.spec
                self.notices.extend(item.notes)
            else:
                self.progress = item
        if not job.ended:
            return bool(items)
        self._load, self.stopping, self.progress = None, False, None
        self.phase = Phase.READY if self.model else Phase.NO_MODEL
        if job.error is not None:
            self.problem = _problem("the model could not be loaded", job.error)
        return True

    def _take_answer(self, job: Job[AnswerEvent]) -> bool:
        assert self.current is not None
        items = job.poll()
        for item in items:
            self._take(item, self.current)
        if job.ended:
            self._finish(self.current, job.error)
        elif items and self._clock() - self._saved_at >= _SAVE_SECONDS:
            self._save(self.current)
        return bool(items) or job.ended

    def _take(self, item: AnswerEvent, answer: ChatMessage) -> None:
        match item:
            case Prepared():
                self._take_ends(item)
            case TooLong():
                self.too_long = item
            case Truncated():
                self.notices.append(f"the oldest {item.dropped} tokens of the question were cut")
            case PrefillProgress():
                self.prefill = item
            case TextChunk():
                self._take_text(item, answer)
            case Finished():
                self.last = item.completion
                self._complete(item.completion, answer)

    def _take_ends(self, prepared: Prepared) -> None:
        ends = prepared.ends[1:] if self.chat.system else prepared.ends
        for run, end in zip(self.chat.turns(), ends, strict=False):
            for message in run:
                message.end = end
        if prepared.dropped:
            self.notices.append(
                f"the oldest {prepared.dropped} messages are outside the window: not read"
            )

    def _take_text(self, chunk: TextChunk, answer: ChatMessage) -> None:
        now = self._clock()
        if self.phase is Phase.READING:
            self.phase = Phase.ANSWERING
            self.meter.begin(now)
            self._seen = chunk.tokens
        else:
            self.meter.add(now, chunk.tokens - self._seen)
            self._seen = chunk.tokens
        answer.text += chunk.text
        answer.end = (self.prefill.total if self.prefill else 0) + chunk.tokens

    def _complete(self, completion: Completion, answer: ChatMessage) -> None:
        stopped = completion.finish_reason is FinishReason.CANCELLED
        answer.state = State.STOPPED if stopped else State.COMPLETE
        answer.text = self._before + completion.text
        answer.figures = Figures(
            model=self.model.spec if self.model else "",
            tokens=len(completion.tokens),
            prompt_tokens=completion.prompt_tokens,
            reused_tokens=completion.reused_tokens,
            finish_reason=completion.finish_reason.value,
            ttft_s=completion.ttft_s,
            prefill_tps=completion.prefill_tps,
            decode_tps=completion.decode_tps,
        )

    def _finish(self, answer: ChatMessage, error: BaseException | None) -> None:
        self._answer = self.current = None
        self.phase, self.stopping = Phase.READY, False
        self.meter.end()
        if error is not None:
            answer.state, answer.error = State.FAILED, str(error) or type(error).__name__
            self.problem = _problem("the answer failed", error)
        empty = not answer.text and (answer.state is not State.COMPLETE or self.too_long)
        if empty and answer in self.chat.messages:
            self.chat.messages.remove(answer)
            self._cut()
        else:
            self._save(answer)

    # -- steps of the above --

    def _answer_last(self, *, drop_oldest: bool = False) -> None:
        answer = ChatMessage(role=Role.ASSISTANT, text="")
        self._begin(answer, continues=False, drop_oldest=drop_oldest)
        self.chat.messages.append(answer)
        self._save(answer)

    def _begin(self, answer: ChatMessage, *, continues: bool, drop_oldest: bool = False) -> None:
        self._ask = Ask(
            messages=self.chat.prompt(),
            max_tokens=self.settings.max_tokens,
            sampling=self.settings.sampling,
            stop=self.settings.stop,
            continues=continues,
            drop_oldest=drop_oldest,
        )
        answer.state, answer.error = State.STREAMING, None
        self.problem = self.too_long = self.prefill = None
        self.current, self._before, self._seen = answer, answer.text, 0
        self.phase = Phase.READING
        self._answer = self._service.answer(self._ask)

    def _drop_answer(self) -> None:
        if self.chat.messages and self.chat.messages[-1].role is Role.ASSISTANT:
            self.chat.messages.pop()
            self._cut()

    def _forget_answer(self) -> None:
        """Nothing of the last answer is shown any more."""
        self.problem = self.too_long = self.last = self.prefill = None

    def _require_idle(self) -> None:
        if self.phase in (Phase.READING, Phase.ANSWERING):
            raise EmberError("stop the answer first (Esc)")

    def _require_ready(self) -> None:
        self._require_idle()
        if self.phase is Phase.LOADING:
            raise EmberError("the model is still loading")
        if self.model is None:
            raise EmberError("no model is loaded: pick one (Ctrl-L)")

    def _save(self, message: ChatMessage) -> None:
        self._saved_at = self._clock()
        self._stored(lambda: self.store.save(self.chat, message))

    def _cut(self) -> None:
        self._stored(lambda: self.store.cut(self.chat))

    def _stored(self, step: Callable[[], None]) -> None:
        """Save; where that fails the chat goes on, and the user is told once."""
        try:
            step()
        except StoreError as error:
            if not self._save_failed:
                self.notices.append(f"this chat is not saved: {error}")
            self._save_failed = True
        else:
            self._save_failed = False


def _problem(title: str, error: BaseException) -> Problem:
    if isinstance(error, EmberError):
        return Problem(title=title, cause=str(error))
    return Problem(title=title, cause=f"{type(error).__name__}: {error} (a fault of ember's own)")
