"""The chat without its screen: what is said, asked, stopped and saved.

Runs on the UI thread and never waits: `tick` takes what the model has given
since. Knows no widget; the screen reads its state after each tick.
"""

import time
from collections.abc import Callable, Mapping, Sequence

from app.chat.answering import Answering, last_answer
from app.chat.asking import ask_of, draft_of, question_of, sampling_of, with_draft
from app.chat.held import Held
from app.chat.mentions import with_mentioned
from app.chat.model_holder import ModelHolder
from app.chat.opening import opened
from app.chat.speed_look import SpeedLook
from app.chat.speed_meter import Meter
from app.chat.state import DRAWN, AnswerSettings, Draft, Phase, Problem, livelier
from app.events import Completion, FinishReason
from app.job import Job
from app.service.contract import CacheWish, ModelInfo, ModelService, TooLong, Weight
from app.sessions.autosave import Autosave
from app.sessions.chat import Chat, ChatMessage, State, sampling_line
from app.sessions.store import SessionStore
from app.sessions.undone import Undone
from kvcache.errors import EmberError
from kvcache.stats import CacheStats
from models.sampling_defaults import GENERIC, Recommended
from models.text.messages import Role
from models.text.thinking import no_switch

_RECALLED = 500


class ChatController:
    """One chat with one model.

    too_long: a prompt that was refused, until the user has decided. queued: a
    question that waits for the model. last: the last finished answer's figures.
    models: the loaded one, and loads and downloads that run. run: the answer that is made.
    held: which chat the cache holds.
    """

    def __init__(
        self,
        service: ModelService,
        settings: AnswerSettings | None = None,
        *,
        system: str = "",
        store: SessionStore | None = None,
        no_thinking: str = "/set think_budget 0",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """no_thinking: how a user ends thinking that the model's format has no switch for."""
        self._no_thinking = no_thinking
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
        self.run: Answering | None = None
        self.held = Held()
        self._answer_problem: Problem | None = None
        # The answer in place of which another is made; shown again where nothing comes of that.
        self._retried: ChatMessage | None = None
        self._undone = Undone()
        self._autosave = Autosave(self.store, self.notices.append, clock)

    # -- what there is to show --

    @property
    def phase(self) -> Phase:
        """What the model is doing."""
        if self.models.loading:
            return Phase.LOADING
        if self.run is not None:
            return Phase.ANSWERING if self.run.begun else Phase.READING
        if self.look.running:
            return Phase.MEASURING
        return Phase.READY if self.model else Phase.NO_MODEL

    @property
    def busy(self) -> bool:
        """Whether a model is loading or answering."""
        return self.models.loading or self.run is not None or self.look.running

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
        return self.held.layers(self.chat, self.service.layer_stats())

    @property
    def problem(self) -> Problem | None:
        """What went wrong last, until something else is done."""
        return self._answer_problem or self.models.problem or self.look.problem

    def asked_before(self) -> Sequence[str]:
        """What was asked in all chats, oldest first; nothing where the disk fails."""
        try:
            return self.store.questions(_RECALLED)
        except EmberError:
            return ()

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
        self.models.require_rest()
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

        While the model is busy, or what to do with a refused one is open, one question waits.
        """
        draft = with_mentioned(draft)
        if editing is not None:
            if editing not in self.chat.messages:
                raise EmberError("the question that you edited is not shown now: ask anew")
            self._require_ready()
        self.models.problem = None
        if editing is not None or self._is_free:
            self._send(draft, editing)
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

    @property
    def _is_free(self) -> bool:
        return self.phase is Phase.READY and self.too_long is None

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
        """Answer the last question again; the answer there is stays. cuts: as for `Ask`.

        once: settings of sampling for that one answer; None: those that make another one of it.
        """
        self._require_ready()
        if once is None:
            once = self._otherwise()
        if not self.chat.messages:
            raise EmberError("nothing to answer again: ask something first")
        self._answer_last(cuts=cuts, once=once)
        if once:
            self.notices.append(f"answered again with {sampling_line(once)}, this once")

    def continue_(self) -> None:
        """Go on with the last answer."""
        self._require_ready()
        last = self.chat.messages[-1] if self.chat.messages else None
        if last is None or last.role is not Role.ASSISTANT or not last.has_words:
            raise EmberError("no answer to go on with: ask something first")
        self._begin(last, continues=True)

    def undo(self) -> Draft:
        """Take back the last question and its answers; returns the question."""
        self._require_ready()
        question = self._undone.take_back(self.chat)
        self._changed()
        return draft_of(question)

    def redo(self) -> Draft | None:
        """Undo the last `undo` since something was said; returns the last question."""
        self._require_none_waits()
        question = self._undone.bring_back(self.chat)
        self._changed()
        return draft_of(question) if question else None

    def choose(self, message: ChatMessage, number: int) -> ChatMessage:
        """Show that variant of a message, from 0, and what was said after it; returns it."""
        self._require_none_waits()
        chosen = self.chat.choose(message, number)
        self._changed()
        return chosen

    def _changed(self) -> None:
        """Other messages are shown than before."""
        self._answer_problem = self.too_long = None
        self.last = last_answer(self.chat.messages)
        self._autosave.save(self.chat)

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
        self.held.move(self.chat, copy)
        self.show_chat(copy)
        self._autosave.save(copy)
        return draft_of(at) if at.role is Role.USER else None

    def new_chat(self) -> None:
        """Begin another chat; the present one stays saved."""
        self.show_chat(Chat(model=self.chat.model, system=self.default_system))

    def show_chat(self, chat: Chat) -> None:
        """Go on with another chat. The model stays."""
        self._require_none_waits()
        self.chat = chat = opened(self.store, chat, self.chat, self.notices.append)
        self._answer_problem = self.models.problem = self.too_long = None
        self.meter, self.last = Meter(), last_answer(chat.messages)
        self._undone.forget()

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
        if (run := self.run) is not None:
            run.take()
            if not run.ended:
                run.answer.state = State.STOPPED
            self._finish(run)
        if self.queued is not None:
            self.chat.say(question_of(self.unqueue()))
        return self._autosave.finish(self.chat)

    # -- what the model does --

    def tick(self) -> bool:
        """Take what has come; returns whether anything has."""
        loads = self.models.loads
        changed = self.models.tick(may_load=self.run is None and not self.look.running)
        self.notices += self.models.said
        self.models.said.clear()
        if self.model is not None and self.models.loads != loads:
            self.chat.model = self.model.spec
            self._tell_of_switch(self.model)
        if self.run is not None:
            changed |= self._follow(self.run)
        changed |= self.look.tick()
        self._autosave.retry_if_due(self.chat)
        if not self.busy:
            self.stopping = False
        if self.queued is not None and self._is_free:
            self._send(self.unqueue())
            changed = True
        return changed

    def _tell_of_switch(self, model: ModelInfo) -> None:
        """That a model thinks as it likes, where it was to be told."""
        if self.settings.think is not None and model.thinks and not model.has_switch:
            self.notices.append(no_switch(thinks=True, budget=self._no_thinking))

    def _follow(self, run: Answering) -> bool:
        came = run.take()
        if run.begun:
            self.held.read(self.chat)
        self.notices += run.notices
        run.notices.clear()
        if run.ended:
            self._finish(run)
        elif came:
            self._autosave.save_if_due(self.chat)
        return came

    def _finish(self, run: Answering) -> None:
        self.run = None
        self.last, self.too_long = run.completion or self.last, run.too_long
        if run.error is not None:
            self._answer_problem = Problem.of("the answer failed", run.error)
        answer = run.answer
        empty = not answer.has_words and (answer.state is not State.COMPLETE or run.too_long)
        if empty and answer in self.chat.messages:
            self.chat.withdraw(answer, self._retried)
        self._autosave.save(self.chat)

    # -- steps of the above --

    def _send(self, draft: Draft, editing: ChatMessage | None = None) -> None:
        self.chat.say(question_of(draft), editing)
        self._autosave.save(self.chat)
        self._answer_last()

    def _answer_last(self, *, cuts: bool = False, once: Mapping[str, float] | None = None) -> None:
        last, answer = self.chat.messages[-1], ChatMessage(role=Role.ASSISTANT, text="")
        self._retried = last if last.role is Role.ASSISTANT else None
        self.chat.say(answer, self._retried)
        self._begin(answer, cuts=cuts, once=once)

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
        self._undone.forget()
        self.held.begin(self.chat)
        self.run = Answering(
            self.service,
            ask,
            self.chat,
            answer,
            model=self.chat.model,
            meter=self.meter,
        )

    def _otherwise(self) -> dict[str, float]:
        """What to draw by for another answer than the last: {} where chance makes it another."""
        last = self.chat.messages[-1] if self.chat.messages else None
        sampling = sampling_of(self.chat, self.settings, self.recommended)
        if last is None or last.role is not Role.ASSISTANT or last.state is not State.COMPLETE:
            return {}
        if last.figures is not None and last.figures.finish_reason == FinishReason.LOOP.value:
            return livelier(sampling)
        return {} if sampling.temperature else DRAWN

    def _require_idle(self) -> None:
        if self.run is not None:
            raise EmberError("stop the answer first (Esc)")
        if self.look.running:
            raise EmberError("the speed is being measured: Esc stops it")

    def _require_none_waits(self) -> None:
        self._require_idle()
        if self.queued is not None:
            raise EmberError("a question of this chat waits for the model; Esc takes it back")

    def _require_ready(self) -> None:
        self._require_idle()
        self.models.require_rest()
        if self.model is None:
            raise EmberError("no model is loaded: pick one (Ctrl-L)")
