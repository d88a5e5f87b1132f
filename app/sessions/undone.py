"""What was taken back of a chat, and can be had again until something new is said."""

from app.sessions.chat import Chat, ChatMessage
from app.sessions.variants import Place, places
from kvcache.errors import EmberError
from models.text.messages import Role


class Undone:
    """A chat as it was before each thing that was taken back, the last one last."""

    def __init__(self) -> None:
        self._before: list[list[Place[ChatMessage]]] = []

    def take_back(self, chat: Chat) -> ChatMessage:
        """Take out the last question with its answers, and return it.

        What an edit had put aside for it is shown again.
        """
        question = _last_question(chat)
        if question is None:
            raise EmberError("nothing to take back")
        self._before.append(places(chat.messages))
        chat.withdraw(question)
        return question

    def bring_back(self, chat: Chat) -> ChatMessage | None:
        """Undo the last `take_back`; returns the question that is the last one now."""
        if not self._before:
            raise EmberError(
                "nothing to bring back: nothing was taken back since something was said; "
                "←→ show what an edit or a retry replaced"
            )
        chat.restore(self._before.pop())
        return _last_question(chat)

    def forget(self) -> None:
        """Something new is said."""
        self._before.clear()


def _last_question(chat: Chat) -> ChatMessage | None:
    questions = [each for each in chat.messages if each.role is Role.USER]
    return questions[-1] if questions else None
