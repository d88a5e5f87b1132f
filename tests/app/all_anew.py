"""The ids of a conversation, all of it tokenized for each question: the oracle of ChatTokens."""

from collections.abc import Sequence

from app.events import Completion, FinishReason
from models.text.chat_template import ChatTemplate
from models.text.messages import Message
from models.text.tokenizer import Tokenizer


class AllAnew:
    """What ChatTokens has to give: all is tokenized, but where a chat goes on from answers."""

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer) -> None:
        self._template, self._tokenizer = template, tokenizer
        self._asked: tuple[str, list[int]] = "", []
        self._answers: list[tuple[str, list[int]]] = []

    def ids(self, messages: Sequence[Message], *, continues: bool) -> list[int]:
        begun = messages[-1].content if continues else ""
        asked = self._template.render(messages[:-1] if continues else messages)
        text = asked + begun
        known = [each for each in reversed(self._answers) if text.startswith(each[0])]
        spoken, ids = max(known, key=lambda each: len(each[0]), default=("", []))
        if spoken:
            new = text.removeprefix(spoken)
            ids = [*ids, *self._tokenizer.encode(new, add_special=False)]
        else:
            ids = self._tokenizer.encode(asked, add_special=False)
            if self._tokenizer.adds_bos and ids[:1] != [self._tokenizer.bos_id]:
                ids.insert(0, self._tokenizer.bos_id or 0)
            ids += self._tokenizer.encode(begun, add_special=False)
        self._asked = text, ids
        return ids

    def answered(self, completion: Completion) -> None:
        tokens = list(completion.tokens)
        if tokens and tokens[-1] in self._tokenizer.eog_ids:
            tokens.pop()
        elif completion.finish_reason is FinishReason.STOP:
            return
        text, ids = self._asked
        self._answers.append((text + completion.text, [*ids, *tokens]))
