"""A loaded model and its conversation: prompts that fit, what is kept of them, what they cost.

Runs on the inference thread, whose owner says when. Knows no job and no screen.
"""

import threading
from collections.abc import Generator, Sequence
from copy import copy

from app.chat_tokens import ChatTokens, Prompt, system_of
from app.engine import Engine, PromptTooLongError
from app.service.contract import Ask, Weight
from app.wake.waking import Waking
from models.loader import LoadedModel
from models.text.tokenized_text import TokenizedText


class Reader:
    """engine: of a model; waking: what keeps its caches on disk, None for nothing."""

    def __init__(self, loaded: LoadedModel, waking: Waking | None) -> None:
        """`engine` is set once it is made: the system prompt is counted before."""
        self.chat = ChatTokens(loaded, self._recall)
        self.engine: Engine | None = None
        self._waking = waking
        # Notes on prompts that were made since the last answer, told with the next.
        self._untold: list[str] = []

    def prompt(self, ask: Ask, cancel: threading.Event) -> tuple[Prompt, int, tuple[str, ...]]:
        """The prompt, how many of its tokens were taken from disk, and what is to be said.

        Raises RenderStoppedError, and PromptTooLongError where the window does not hold it and
        nothing of it may be cut.
        """
        assert self.engine is not None
        prompt, woken = self._fitting(self.chat, ask, cancel), 0
        if self._waking is not None:
            woken = self._waking.wake(self.engine, prompt.ids)
            self._untold += [*self._waking.notes()]
            if not self.engine.fits(prompt.ids):
                # What was kept has gone, or is damaged.
                prompt = self._fitting(self.chat, ask, cancel)
        if not (ask.cuts or self.engine.fits(prompt.ids)):
            raise PromptTooLongError(len(prompt.ids), self.engine.plan.max_tokens)
        notes, self._untold = tuple(self._untold), []
        return prompt, woken, notes

    def weigh(self, ask: Ask, cancel: threading.Event) -> Weight:
        """What `prompt` would give, by a copy of the conversation, which notes nothing."""
        assert self.engine is not None
        prompt = self._fitting(copy(self.chat), ask, cancel)
        ids, on_disk = prompt.ids, self._on_disk(prompt.ids)
        return Weight(
            tokens=len(ids),
            new=len(ids) - max(self.engine.reusable(ids), on_disk),
            window=self.engine.plan.max_tokens,
            dropped=prompt.dropped,
            fits=self.engine.fits(ids, on_disk),
        )

    def rest(self) -> Generator[None, None, None]:
        """Keep what the cache holds, a step at a time."""
        if self._waking is not None and self.engine is not None:
            yield from self._waking.rest(self.engine, self.chat.said)

    def _fitting(self, chat: ChatTokens, ask: Ask, cancel: threading.Event) -> Prompt:
        """A prompt without those turns that cannot be held.

        All that follow those of `ask.left_out` where the cache has seen the conversation, or can
        be given it from disk; else whole turns, the newest, up to the window.
        """
        assert self.engine is not None

        def make(left_out: int = 0, room: int | None = None) -> Prompt:
            made = chat.prompt(
                ask.messages,
                continues=ask.continues,
                think=ask.think,
                left_out=left_out,
                room=room,
                cancel=cancel,
            )
            self._untold += made.notes
            return made

        prompt = make(ask.left_out)
        if ask.left_out:
            system = chat.system_tokens(system_of(ask.messages), cancel, think=ask.think)
            if max(self.engine.shared(prompt.ids), self._on_disk(prompt.ids)) <= system:
                prompt = make()
        fits = self.engine.fits(prompt.ids, self._on_disk(prompt.ids))
        return prompt if fits else make(room=self.engine.room(ask.room))

    def _on_disk(self, ids: Sequence[int]) -> int:
        """Tokens at the beginning of a prompt that could be taken from there."""
        assert self.engine is not None
        return 0 if self._waking is None else self._waking.reach(self.engine, ids)

    def _recall(self, text: str) -> TokenizedText | None:
        """What was kept of a conversation of this text."""
        if self._waking is None or self.engine is None:
            return None
        return self._waking.recall(self.engine, text)
