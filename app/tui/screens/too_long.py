"""What to do with a prompt that the window cannot hold."""

from app.tui.screens.question import QuestionScreen
from app.tui.service.contract import TooLong

DROP, UNDO = "drop", "undo"


class TooLongScreen(QuestionScreen):
    """Ends with DROP, UNDO, or None where the question is to stay unanswered."""

    def __init__(self, long: TooLong) -> None:
        super().__init__(
            "The window is too small for this",
            f"The conversation has {long.prompt_tokens} tokens, the window holds "
            f"{long.window} with its answer. Nothing has been cut. What is left out stays in "
            "the chat, but the model does not read it.",
            {DROP: "Leave out the oldest turns", UNDO: "Take the question back"},
        )
