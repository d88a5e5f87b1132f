"""What to do with a prompt that the window cannot hold."""

import math
import time
from collections.abc import Callable
from typing import Any

from rich.console import RenderableType
from textual import events
from textual.app import App

from app.chat.controller import ChatController
from app.service.contract import TooLong
from app.tui.screens.question import QuestionScreen
from app.tui.widgets.composer import Composer
from app.tui.widgets.prompt import Prompt

CUT, UNDO = "cut", "undo"


class TooLongScreen(QuestionScreen):
    """Ends with CUT, UNDO, or None where the question is to stay unanswered.

    Nobody has asked for this dialog: what was typed before it was seen is for the prompt.
    seen_since: when it was first drawn, by the clock of events; infinite until then.
    """

    def __init__(self, long: TooLong, prompt: Prompt) -> None:
        super().__init__(
            "The window is too small for this",
            f"The question alone has {long.prompt_tokens} tokens, the window holds "
            f"{long.window} with its answer. Nothing has been cut. What is cut stays in "
            "the chat, but the model does not read it. /ctx makes the window larger.",
            {CUT: "Cut the beginning of the question", UNDO: "Take the question back"},
        )
        self._prompt = prompt
        self.seen_since = math.inf

    def render(self) -> RenderableType:
        """Draw it: from now on it may be seen."""
        self.seen_since = min(self.seen_since, time.monotonic())
        return super().render()

    def passes_on(self, event: events.Key | events.Paste) -> bool:
        """Give the prompt what was typed before anybody saw the question."""
        is_early = event.time < self.seen_since
        if is_early:
            self._prompt._forward_event(event)
        return is_early


def ask_about_length(
    app: App[Any],
    chat: ChatController,
    attempt: Callable[[Callable[[], None]], None],
    composer: Composer,
) -> None:
    """Ask about the question that was refused, and do what is chosen.

    attempt: does it, and says why where that is refused. composer: takes the question back.
    """
    assert chat.too_long is not None

    def done(choice: str | None) -> None:
        chat.too_long = None
        if choice == CUT:
            attempt(lambda: chat.retry(cuts=True))
        elif choice == UNDO:
            attempt(lambda: composer.put(chat.undo()))

    app.push_screen(TooLongScreen(chat.too_long, composer.prompt), done)
