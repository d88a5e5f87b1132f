"""The chat without its screen: what is said, asked, stopped and saved.

Runs on the UI thread and never waits: `tick` takes what the model has given
since. Knows no widget; the screen reads its state after each tick.
"""

import time
from collections.abc import Callable, Mapping, Sequence

from app.generation import PrefillProgress
from app.job import Job
from app.sessions.chat import Chat, ChatMessage, State, title_of
from app.sessions.store import SessionStore
from app.transcript import Completion, Drafts, FinishReason
from app.tui.chat.answering import Answering, last_answer
from app.tui.chat.asking import ask_of, sampling_of, with_draft
from app.tui.chat.autosave import Autosave
from app.tui.chat.mentions import with_mentioned
from app.tui.chat.model_holder import ModelHolder
from app.tui.chat.speed_look import SpeedLook
from app.tui.chat.speed_meter import Meter
from app.tui.chat.state import (
    AnswerSettings,
    Draft,
    Phase,
    Problem,
    livelier,
    sampling_line,
)
from app.tui.chat.tier_counts import emptied
from app.tui.service.contract import CacheWish, ModelInfo, ModelService, TooLong, Weight
from kvcache.errors import EmberError
from kvcache.stats import CacheStats
from models.sampling_defaults import GENERIC, Recommended
from models.text.messages import Role
from models.text.thinking import no_switch


class ChatController:
    """One chat with one model.

    too_long: a prompt that was refused, until the user has decided. queued: a
    question that waits for the model. last: the last finished answer's figures.
    models: the loaded one, and loads and downloads that run.
    """

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
        self.store = store or SessionStore.in_memory()
        self.meter = Meter()
        self.notices: list[str] = []
        self.stopping = False
        self.too_long: TooLong | None = None
        self.queued: Draft | None = None
        self.last: Completion | None = None
        self.look = SpeedLook(service)
        self.service = service
        self.models = ModelHolder(service)
        self._run: Answering | None = None
        self._answer_problem: Problem | None = None
        # The chat whose tokens the model's cache holds; None before the first question.
        self._held: Chat | None = None
        self._autosave = Autosave(self.store, self.notices.append, clock)

    # -- what there is to show --

    @property
    def phase(self) -> Phase:
        """What the model is doing."""
        if self.models.loading:
            return Phase.LOADING
        if self._run is not None:
            return Phase.ANSWERING if self._run.begun else Phase.READING
        if self.look.running:
            return Phase.MEASURING
        return Phase.READY if self.model else Phase.NO_MODEL

    @property
    def busy(self) -> bool:
        """Whether a model is loading or answering."""
        return self.models.loading or self._run is not None or self.look.running

    @property
    def model(self) -> ModelInfo | None:
        """The loaded model."""
        return self.models.model

    @property
    def recommended(self) -> Recommended:
        """How the model's makers would have its answers drawn."""
        return self.model.recommended(self.settings.think) if self.model else GENERIC

    def layer_stats(self) -> Sequence[CacheStats]:
        """The cache, layer by layer, of this chat: empty while it holds another."""
        layers = self.service.layer_stats()
        return layers if self._held in (None, self.chat) else emptied(layers)

    @property
    def drafts(self) -> Drafts:
        """Of the answer that runs, or the last."""
        if self._run is not None:
            return self._run.drafts
        return self.last.drafts if self.last else Drafts()

    @property
    def prefill(self) -> PrefillProgress | None:
        """How much of the prompt has been read."""
        return None if self._run is None else self._run.prefill

    @property
    def is_thinking(self) -> bool:
        """Whether the model thinks, and does not answer yet."""
        return self._run is not None and self._run.is_thinking

    @property
    def problem(self) -> Problem | None:
        """What went wrong last, until something else is done."""
        return self._answer_problem or self.models.problem or self.look.problem

    # -- the model --

    def load(self, spec: str) -> None:
        """Load a model in place of the present one; the chat stays."""
        self._require_idle()
        self.models.load(spec)
        self._answer_problem = None

    def use(self, spec: str) -> None:
        """Load a model, fetched first where it is not on this machine."""
        if self.service.is_here(spec):
            self.load(spec)
        else:
            self.models.fetch(spec)

    def change_cache(self, wish: CacheWish, changed: Callable[[], None]) -> None:
        """Another cache, which takes along what this one holds; `changed` is called after it."""
        self._require_idle()
        self._require_loaded()
        self.models.change_cache(wish, changed)
        self._answer_problem = None

    def measure(self) -> None:
        """Have the model read and answer something beside the chat, to see how fast it is."""
        self._require_ready()
        self._answer_problem = None
        self.look.begin()

    # -- asking --

    def ask(self, draft: Draft, editing: ChatMessage | None = None) -> None:
        """Ask, or ask an earlier question anew; files that the text mentions go along.

        While the model is busy, one question waits.
        """
        draft = with_mentioned(draft)
        if editing is not None and editing in self.chat.messages:
            self._require_ready()
            del self.chat.messages[self.chat.messages.index(editing) :]
        self.models.problem = None
        if self.phase is Phase.READY:
            self._send(draft)
        elif self.queued is None:
            self.queued = draft
        else:
            raise EmberError("one question waits already; Esc takes it back")

    def weigh(self, draft: Draft, editing: ChatMessage | None = None) -> Job[Weight] | None:
        """What a draft would cost with all that goes along; None while the model is busy.

        Raises EmberError for a file that cannot go along.
        """
        if self.phase is not Phase.READY:
            return None
        chat = with_draft(self.chat, draft, editing)
        return self.service.weigh(ask_of(chat, self.settings, self.recommended))

    def unqueue(self) -> Draft:
        """Take back the question that waits."""
        assert self.queued is not None
        draft, self.queued = self.queued, None
        return draft

    def stop(self) -> None:
        """End the load or answer that runs; what has come is kept."""
        if self.busy:
            self.stopping = True
            self.service.cancel()

    def retry(self, *, cuts: bool = False, once: Mapping[str, float] | None = None) -> None:
        """Answer the last question again. cuts: as for `Ask`.

        once: settings of sampling for that one answer; None: where the last one went round in
        circles, livelier ones.
        """
        self._require_ready()
        if once is None:
            once = self._out_of_circles()
        self._drop_answer()
        if not self.chat.messages:
            raise EmberError("nothing to answer again: ask something first")
        self._answer_last(cuts=cuts, once=once)
        if once:
            self.notices.append(f"answered again with {sampling_line(once)}, this once")

    def continue_(self) -> None:
        """Go on with the last answer."""
        self._require_ready()
        last = self.chat.messages[-1] if self.chat.messages else None
        is_begun = last is not None and bool(last.text or last.thought)
        if last is None or last.role is not Role.ASSISTANT or not is_begun:
            raise EmberError("no answer to go on with: ask something first")
        self._begin(last, continues=True)

    def undo(self) -> Draft:
        """Take back the last question and its answer; returns the question."""
        self._require_ready()
        self._drop_answer()
        if not self.chat.messages:
            raise EmberError("nothing to take back")
        question = self.chat.messages.pop()
        self._autosave.save(self.chat)
        self._answer_problem = None
        return Draft(text=question.text, attachments=question.attachments)

    def dismiss_too_long(self) -> None:
        """The user has seen it; the question stays unanswered."""
        self.too_long = None

    # -- chats --

    def fork(self, at: ChatMessage | None = None) -> Draft | None:
        """Go on in a copy of the chat that ends with the message `at` (default: the last).

        Where that is a question, the copy ends before it and the question is returned.
        """
        self._require_none_waits()
        messages = self.chat.messages
        if not messages:
            raise EmberError("nothing to fork yet: ask something first")
        at = at or messages[-1]
        copy = self.chat.copy_until(at)
        if self._held is self.chat:
            self._held = copy
        self.show_chat(copy)
        self._autosave.save(copy)
        is_question = at.role is Role.USER
        return Draft(text=at.text, attachments=at.attachments) if is_question else None

    def new_chat(self) -> None:
        """Begin another chat; the present one stays saved."""
        self.show_chat(Chat(model=self.chat.model, system=self.default_system))

    def show_chat(self, chat: Chat) -> None:
        """Go on with another chat. The model stays."""
        self._require_none_waits()
        if chat.id is not None and not self.store.claim(chat.id):
            chat = self.store.copy(chat)
            self.notices.append(
                "this chat is open in another window: what is said here becomes a chat of its "
                f"own, “{chat.title}”"
            )
        if self.chat.id is not None and self.chat.id != chat.id:
            self.store.release(self.chat.id)
        self.chat = chat
        self._answer_problem = self.models.problem = self.too_long = None
        self.meter, self.last = Meter(), last_answer(chat.messages)
        if chat.damaged:
            self.notices.append(
                f"{chat.damaged} messages of this chat are damaged: what can be read is shown"
            )

    def use_settings(self, settings: AnswerSettings) -> None:
        """Make answers otherwise, from the next one on."""
        is_other = settings.think != self.settings.think
        self.settings = settings
        if is_other and self.model is not None:
            self._tell_of_switch(self.model)

    def set_system(self, text: str) -> None:
        """Another system prompt, from the next answer on."""
        self.set_own(text, self.chat.sampling)

    def set_own(self, system: str, sampling: Mapping[str, float]) -> None:
        """What this chat alone is given, from the next answer on."""
        self._require_idle()
        self.chat.system, self.chat.sampling = system, dict(sampling)
        self._autosave.save(self.chat)

    @property
    def own_sampling_line(self) -> str:
        """The sampling settings that this chat has of its own."""
        return sampling_line(self.chat.sampling)

    def rename(self, title: str) -> None:
        """Another title."""
        self.chat.title = title
        self._autosave.save(self.chat)

    def delete(self, number: int) -> None:
        """Forget a saved chat that is not the present one. Raises StoreError."""
        self.store.delete(number)
        self._autosave.forget(number)

    def close(self) -> EmberError | None:
        """Save for the last time, what is unfinished too; returns why that failed, if it did."""
        if (run := self._run) is not None:
            run.take()
            if not run.ended:
                run.answer.state = State.STOPPED
            self._finish(run)
        if self.queued is not None:
            self._add(self.unqueue())
        return self._autosave.finish(self.chat)

    # -- what the model does --

    def tick(self) -> bool:
        """Take what has come; returns whether anything has."""
        loads = self.models.loads
        changed = self.models.tick(may_load=self._run is None and not self.look.running)
        self.notices += self.models.said
        self.models.said.clear()
        if self.model is not None and self.models.loads != loads:
            self.chat.model = self.model.spec
            self._tell_of_switch(self.model)
        if self._run is not None:
            changed |= self._follow(self._run)
        changed |= self.look.tick()
        self._autosave.retry_if_due(self.chat)
        if not self.busy:
            self.stopping = False
        if self.phase is Phase.READY and self.queued is not None and self.too_long is None:
            self._send(self.unqueue())
            changed = True
        return changed

    def _tell_of_switch(self, model: ModelInfo) -> None:
        """That a model thinks as it likes, where it was to be told."""
        if self.settings.think is not None and model.thinks and not model.has_switch:
            self.notices.append(no_switch(thinks=True, budget="/set think_budget 0"))

    def _follow(self, run: Answering) -> bool:
        came = run.take()
        self.notices += run.notices
        run.notices.clear()
        if run.ended:
            self._finish(run)
        elif came:
            self._autosave.save_if_due(self.chat)
        return came

    def _finish(self, run: Answering) -> None:
        self._run = None
        self.last, self.too_long = run.completion or self.last, run.too_long
        if run.error is not None:
            self._answer_problem = Problem.of("the answer failed", run.error)
        answer = run.answer
        said = answer.text or answer.thought
        empty = not said and (answer.state is not State.COMPLETE or run.too_long)
        if empty and answer in self.chat.messages:
            self.chat.messages.remove(answer)
        self._autosave.save(self.chat)

    # -- steps of the above --

    def _send(self, draft: Draft) -> None:
        self._add(draft)
        self._autosave.save(self.chat)
        self._answer_last()

    def _add(self, draft: Draft) -> None:
        question = ChatMessage(role=Role.USER, text=draft.text, attachments=draft.attachments)
        self.chat.messages.append(question)
        self.chat.title = self.chat.title or title_of(self.chat.messages)

    def _answer_last(self, *, cuts: bool = False, once: Mapping[str, float] | None = None) -> None:
        answer = ChatMessage(role=Role.ASSISTANT, text="")
        self._begin(answer, cuts=cuts, once=once)
        self.chat.messages.append(answer)

    def _begin(
        self,
        answer: ChatMessage,
        *,
        continues: bool = False,
        cuts: bool = False,
        once: Mapping[str, float] | None = None,
    ) -> None:
        ask = ask_of(
            self.chat, self.settings, self.recommended, continues=continues, cuts=cuts, once=once
        )
        self._answer_problem = self.too_long = None
        self._held = self.chat
        self._run = Answering(
            self.service,
            ask,
            self.chat,
            answer,
            model=self.chat.model,
            meter=self.meter,
        )

    def _out_of_circles(self) -> dict[str, float]:
        """What to draw by after an answer that went round in circles; {} after another."""
        figures = self.chat.messages[-1].figures if self.chat.messages else None
        if figures is None or figures.finish_reason != FinishReason.LOOP.value:
            return {}
        return livelier(sampling_of(self.chat, self.settings, self.recommended))

    def _drop_answer(self) -> None:
        if self.chat.messages and self.chat.messages[-1].role is Role.ASSISTANT:
            self.chat.messages.pop()

    def _require_idle(self) -> None:
        if self._run is not None:
            raise EmberError("stop the answer first (Esc)")
        if self.look.running:
            raise EmberError("the speed is being measured: Esc stops it")

    def _require_none_waits(self) -> None:
        self._require_idle()
        if self.queued is not None:
            raise EmberError("a question of this chat waits for the model; Esc takes it back")

    def _require_ready(self) -> None:
        self._require_idle()
        self._require_loaded()
        if self.model is None:
            raise EmberError("no model is loaded: pick one (Ctrl-L)")

    def _require_loaded(self) -> None:
        if self.models.loading:
            raise EmberError("the model is still loading")
