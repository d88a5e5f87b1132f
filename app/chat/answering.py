"""One answer while it is made: the model's events, written into a message."""

from collections.abc import Sequence

from app.chat.speed_meter import Meter
from app.events import (
    Completion,
    Drafts,
    Finished,
    FinishReason,
    PrefillProgress,
    TextChunk,
    ThinkingChunk,
    Truncated,
)
from app.service.contract import AnswerEvent, Ask, ModelService, Prepared, TooLong
from app.sessions.chat import Chat, ChatMessage, Figures, State, Thought


def last_answer(messages: Sequence[ChatMessage]) -> Completion | None:
    """The figures of the last answer that has some, as it gave them; without its words."""
    known = [each.figures for each in messages if each.figures]
    if not known:
        return None
    figures = known[-1]
    reasons = {each.value: each for each in FinishReason}
    return Completion(
        text="",
        tokens=(0,) * figures.tokens,
        prompt_tokens=figures.prompt_tokens,
        reused_tokens=figures.reused_tokens,
        finish_reason=reasons.get(figures.finish_reason, FinishReason.STOP),
        ttft_s=figures.ttft_s,
        prefill_tps=figures.prefill_tps,
        decode_tps=figures.decode_tps,
    )


class Answering:
    """Begins to answer at once; `take` takes what has come since.

    begun: whether there is text, or thinking; is_thinking: whether that came last. drafts: what
    became of those so far. notices: what the user should know, to be taken away by who shows it.
    """

    def __init__(
        self,
        service: ModelService,
        ask: Ask,
        chat: Chat,
        answer: ChatMessage,
        *,
        model: str,
        meter: Meter,
    ) -> None:
        self.answer = answer
        self.prefill: PrefillProgress | None = None
        self.completion: Completion | None = None
        self.too_long: TooLong | None = None
        self.drafts = Drafts()
        self.notices: list[str] = []
        self.begun = self.is_thinking = False
        self._continues = ask.continues
        self._chat, self._model, self._meter = chat, model, meter
        self._before, self._seen = answer.text, 0
        self._thought_before = answer.thought or Thought(text="", tokens=0, seconds=0.0)
        answer.state, answer.error = State.STREAMING, None
        self._job = service.answer(ask)

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self._job.ended

    @property
    def error(self) -> BaseException | None:
        """What the answer broke off with."""
        return self._job.error

    def take(self) -> bool:
        """Take what has come; returns whether anything has."""
        items = self._job.poll()
        for item in items:
            self._take(item)
        if self.ended:
            self._meter.end()
            if self.answer.state is State.STREAMING:
                # Stopped before the model was asked, or the question was too long.
                self.answer.state = State.STOPPED
            if self.error is not None:
                self.answer.state = State.FAILED
                self.answer.error = str(self.error) or type(self.error).__name__
        return bool(items) or self.ended

    def _take(self, item: AnswerEvent) -> None:
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
                self._take_text(item)
            case ThinkingChunk():
                self._take_thinking(item)
            case Finished():
                self._complete(item.completion)

    def _take_ends(self, prepared: Prepared) -> None:
        """Note where each message ends in the prompt."""
        ends = prepared.ends[1:] if self._chat.system else prepared.ends
        turns = self._chat.turns(continues=self._continues)
        for run, end in zip(turns, ends, strict=False):
            for message in run:
                message.end = end
        before = self._chat.left_out
        self._chat.leave_out(prepared.dropped, continues=self._continues)
        self.notices.extend(prepared.notes)
        if prepared.woken:
            self.notices.append(f"restored {prepared.woken} tokens")
        if self._chat.left_out > before:
            self.notices.append(
                f"the window does not hold the whole chat: its first {self._chat.left_out} "
                "messages (×) are not read"
            )

    def _take_text(self, chunk: TextChunk) -> None:
        self._count(chunk)
        self.is_thinking = False
        self.answer.text += chunk.text

    def _take_thinking(self, chunk: ThinkingChunk) -> None:
        self._count(chunk)
        self.is_thinking = True
        so_far = self.answer.thought.text if self.answer.thought else ""
        self._set_thought(so_far + chunk.text, chunk.thinking_tokens, chunk.seconds)

    def _count(self, chunk: TextChunk | ThinkingChunk) -> None:
        if self.begun:
            self._meter.add(chunk.at, chunk.tokens - self._seen)
        else:
            self._meter.begin(chunk.at)
        self.begun, self._seen, self.drafts = True, chunk.tokens, chunk.drafts
        self.answer.end = (self.prefill.total if self.prefill else 0) + chunk.tokens

    def _set_thought(self, text: str, tokens: int, seconds: float) -> None:
        """Thinking of this answer, after what there was of it before."""
        before = self._thought_before
        self.answer.thought = Thought(
            text=text, tokens=before.tokens + tokens, seconds=before.seconds + seconds
        )

    def _complete(self, completion: Completion) -> None:
        self.completion = completion
        stopped = completion.finish_reason is FinishReason.CANCELLED
        self.answer.state = State.STOPPED if stopped else State.COMPLETE
        self.answer.text = self._before + completion.text
        thinking = self._thought_before.text + completion.thinking
        if not thinking:
            self.answer.thought = None
        elif completion.thinking_tokens:
            self._set_thought(thinking, completion.thinking_tokens, completion.thinking_s)
        # What was there before this answer was gone on with.
        earlier = self.answer.figures if self._before or self._thought_before.text else None
        self.answer.figures = Figures(
            model=self._model,
            tokens=len(completion.tokens) + (earlier.tokens if earlier else 0),
            prompt_tokens=completion.prompt_tokens,
            reused_tokens=completion.reused_tokens,
            finish_reason=completion.finish_reason.value,
            ttft_s=completion.ttft_s,
            prefill_tps=completion.prefill_tps,
            decode_tps=completion.decode_tps or (earlier.decode_tps if earlier else 0.0),
        )
