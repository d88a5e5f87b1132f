"""Commands that change the conversation."""

from collections.abc import Iterable, Sequence

from app import texts
from app.chat.state import OWN_SAMPLING
from app.sessions.chat import ChatMessage
from app.tui.commands.persona import typed_sampling
from app.tui.screens.chat import NEXT, PREVIOUS, ChatScreen
from kvcache.errors import EmberError, quoted
from models.text.messages import Role


def retry(screen: ChatScreen, text: str) -> None:
    """Answer the last question again, with sampling of its own where some is given.

    The answer before stays as a variant.
    """
    screen.chat.retry(once=typed_sampling(screen, text, "/retry") if text else None)
    screen.action_follow()


def retry_choices(_screen: ChatScreen) -> Iterable[str]:
    """The names of the settings."""
    return OWN_SAMPLING


def continue_(screen: ChatScreen, _text: str) -> None:
    """Go on with the last answer."""
    screen.chat.continue_()
    screen.action_follow()


def undo(screen: ChatScreen, _text: str) -> None:
    """Take back the last question; it returns to the prompt."""
    screen.composer.put(screen.chat.undo())


def redo(screen: ChatScreen, _text: str) -> None:
    """Have again what was taken back last; its question leaves the prompt."""
    draft = screen.chat.redo()
    if draft is not None:
        screen.composer.drop(draft)
    screen.action_follow()


def variant(screen: ChatScreen, text: str) -> None:
    """Show another variant of the selected message or the last, and what was said after it."""
    message = _varied(screen.varied, text)
    variants, was_selected = message.variants, screen.conversation.selected is not None
    assert variants is not None
    present = variants.number(message)
    wanted = _wanted(text, present, len(variants)) if text else present
    if wanted == present:
        said = f"this is variant {present + 1} of {len(variants)}: /variant N shows another"
        screen.notify(said, markup=False)
        return
    chosen = screen.chat.choose(message, wanted)
    if later := len(variants.tails[present]) - 1:
        count = f"{later} message{'s' * (later > 1)}"
        screen.notify(f"{count} after variant {present + 1} stay with it", markup=False)
    screen.show_messages()
    if was_selected:
        screen.conversation.select(chosen)


def _varied(messages: Sequence[ChatMessage], text: str) -> ChatMessage:
    """The first of them that has a variant on that side."""
    varied = [each for each in messages if each.variants and len(each.variants) > 1]
    if not varied:
        raise EmberError(
            "there is no other variant: ^R gives another answer, and a question that is edited "
            "stays as one"
        )
    return next((each for each in varied if _leads_on(each, text)), varied[0])


def _leads_on(message: ChatMessage, text: str) -> bool:
    """Whether it has a variant on that side, where a side is named."""
    variants = message.variants
    assert variants is not None
    last = {PREVIOUS: 0, NEXT: len(variants) - 1}
    return variants.number(message) != last.get(text)


def variant_choices(_screen: ChatScreen) -> tuple[str, ...]:
    """What it takes beside a number."""
    return PREVIOUS, NEXT


def _wanted(text: str, present: int, count: int) -> int:
    """The variant that is asked for, from 0."""
    if text in (PREVIOUS, NEXT):
        return min(max(present + (1 if text == NEXT else -1), 0), count - 1)
    wanted = texts.count(text, count)
    if not wanted:
        raise EmberError(
            f"got {quoted(text)}, expected {PREVIOUS}, {NEXT} or a number from 1 to {count}"
        )
    return wanted - 1


def edit(screen: ChatScreen, text: str) -> None:
    """Put a question into the prompt; what was said from there on stays as a variant."""
    if screen.chat.busy:
        raise EmberError("stop the answer first (Esc), then edit")
    questions = [each for each in screen.chat.chat.messages if each.role is Role.USER]
    if not questions:
        raise EmberError("nothing to edit yet: ask something first")
    message = _numbered(questions, text) or screen.conversation.selected
    if message is None:
        message = questions[-1]
    elif message.role is not Role.USER:
        messages = screen.chat.chat.messages
        message = messages[max(messages.index(message) - 1, 0)]
    screen.composer.edit(message)
    screen.conversation.unselect()


def fork(screen: ChatScreen, text: str) -> None:
    """Go on in a copy that ends at the selected message, at question N, or here."""
    questions = [each for each in screen.chat.chat.messages if each.role is Role.USER]
    draft = screen.chat.fork(_numbered(questions, text) or screen.conversation.selected)
    screen.conversation.unselect()
    if draft is not None:
        screen.composer.put(draft)
    screen.notify("this is a copy now; the other chat is as it was (^O)", markup=False)


def _numbered(questions: list[ChatMessage], text: str) -> ChatMessage | None:
    """Question N, counted from 1; None where no number is given."""
    if not text:
        return None
    wanted = texts.count(text, len(questions))
    if not wanted:
        raise EmberError(
            f"got {quoted(text)}, expected the number of a question, 1 to {len(questions)}"
        )
    return questions[wanted - 1]
