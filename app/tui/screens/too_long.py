"""What to do with a prompt that the window cannot hold."""

from app.tui.screens.question import QuestionScreen
from app.tui.service.contract import TooLong

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
