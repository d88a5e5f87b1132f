"""From a chat and the settings to what is asked of a model, and what that would cost.

Knows no service: whoever has one weighs.
"""

import asyncio
from collections.abc import Callable, Mapping

from app import units
from app.chat.mentions import with_mentioned
from app.chat.state import AnswerSettings, Draft, with_own
from app.job import Job
from app.sampling import Sampling
from app.service.contract import Ask, Weight
from app.sessions.chat import Chat, ChatMessage
from kvcache.errors import EmberError
from models.sampling_defaults import Recommended
from models.text.messages import Role

_LOOK_SECONDS = 0.0125


def sampling_of(chat: Chat, settings: AnswerSettings, recommended: Recommended) -> Sampling:
    """The chat's own before the user's, the user's before what is recommended for the model."""
    sampling = Sampling(seed=settings.seed)
    for values in (recommended.values, settings.sampling, chat.sampling):
        sampling = with_own(sampling, values)
    return sampling


def ask_of(
    chat: Chat,
    settings: AnswerSettings,
    recommended: Recommended,
    *,
    continues: bool = False,
    cuts: bool = False,
    once: Mapping[str, float] | None = None,
) -> Ask:
    """What is asked of the model to have the chat's last message answered.

    recommended: for this model. once: settings of sampling for this answer alone.
    """
    turns, left_out = chat.turns(continues=continues), chat.turns_left_out(continues=continues)
    return Ask(
        messages=chat.prompt(continues=continues),
        max_tokens=settings.max_tokens,
        sampling=with_own(sampling_of(chat, settings, recommended), once or {}),
        stop=settings.stop,
        continues=continues,
        # The last question is read, whatever was taken back before it.
        left_out=left_out if left_out < len(turns) - 1 else 0,
        room=settings.room or settings.max_tokens,
        cuts=cuts,
        think=settings.think,
        think_budget=settings.think_budget,
        lookup=settings.lookup,
        allow_loops=settings.allow_loops,
    )


def question_of(draft: Draft) -> ChatMessage:
    """A draft as the message that it becomes."""
    return ChatMessage(role=Role.USER, text=draft.text, attachments=draft.attachments)


def draft_of(question: ChatMessage) -> Draft:
    """A question as it was typed."""
    return Draft(text=question.text, attachments=question.attachments)


def with_draft(chat: Chat, draft: Draft, editing: ChatMessage | None) -> Chat:
    """A copy of a chat in which a draft has been sent, in place of a question where one is edited.

    Raises EmberError for a file that cannot go along.
    """
    sent = chat.copy()
    if editing in chat.messages:
        del sent.messages[chat.messages.index(editing) :]
    sent.messages.append(question_of(with_mentioned(draft)))
    return sent


async def cost_line(weigh: Callable[[], Job[Weight] | None]) -> str:
    """What a draft would cost, or why it cannot be sent; "" where nobody can tell now.

    weigh: run on another thread, as it may read files.
    """
    try:
        job = await asyncio.to_thread(weigh)
    except EmberError as error:
        return str(error)
    while job is not None and not job.ended:
        if found := job.poll():
            return _said(found[-1])
        await asyncio.sleep(_LOOK_SECONDS)
    return ""


def _said(weight: Weight) -> str:
    """What the prompt is, all of the chat included, and whether the window holds it."""
    tokens = f"{units.count(weight.tokens)} tok"
    if weight.new < weight.tokens:
        tokens += f", {units.count(weight.new)} new"
    if not weight.fits:
        return f"{tokens} · the window holds {weight.window}"
    return f"{tokens} · {'fits without the first turns' if weight.dropped else 'fits'}"
