"""What to do with a prompt that the window cannot hold."""

from collections.abc import Callable
from typing import Any

from textual.app import App

from app.chat.controller import ChatController
from app.chat.state import Draft
from app.service.contract import TooLong
from app.tui.screens.question import QuestionScreen

CUT, UNDO = "cut", "undo"


class TooLongScreen(QuestionScreen):
    """Ends with CUT, UNDO, or None where the question is to stay unanswered."""

    def __init__(self, long: TooLong) -> None:
        super().__init__(
            "The window is too small for this",
            f"The question alone has {long.prompt_tokens} tokens, the window holds "
            f"{long.window} with its answer. Nothing has been cut. What is cut stays in "
            "the chat, but the model does not read it. /ctx makes the window larger.",
            {CUT: "Cut the beginning of the question", UNDO: "Take the question back"},
        )


def ask_about_length(
    app: App[Any],
    chat: ChatController,
    attempt: Callable[[Callable[[], None]], None],
    put: Callable[[Draft], None],
) -> None:
    """Ask about the prompt that was refused, and do what is chosen.

    attempt: does it, and says why where that is refused. put: takes the question back.
    """
    assert chat.too_long is not None

    def done(choice: str | None) -> None:
        chat.too_long = None
        if choice == CUT:
            attempt(lambda: chat.retry(cuts=True))
        elif choice == UNDO:
            attempt(lambda: put(chat.undo()))

    app.push_screen(TooLongScreen(chat.too_long), done)
