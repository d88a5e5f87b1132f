"""Asking, answering again, editing, taking back and choosing, in any order, against a tree."""

from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from app.chat.state import Draft
from app.sessions.chat import ChatMessage
from app.sessions.export import as_json, from_json
from app.sessions.store import SessionStore
from kvcache import EmberError
from tests.app.chat.talk import Talk
from tests.app.chat.tree import Tree


def variants_of(messages: Sequence[ChatMessage]) -> list[tuple[int, int]]:
    """Of each: which variant it is, and of how many."""
    return [
        (each.variants.number(each), len(each.variants)) if each.variants else (0, 1)
        for each in messages
    ]


class Histories(RuleBasedStateMachine):
    """A chat with a scripted model, and what it should say."""

    def __init__(self) -> None:
        super().__init__()
        self.talk = Talk(SessionStore.in_memory())
        self.tree = Tree()
        self.count = 0

    @property
    def messages(self) -> list[ChatMessage]:
        return self.talk.chat.chat.messages

    def new(self, kind: str) -> str:
        self.count += 1
        return f"{kind}{self.count}"

    def answered(self) -> None:
        """The model reads what is shown, and says something new."""
        assert "\n\n".join(self.talk.asked) == "\n\n".join(self.tree.texts)
        self.answer()

    def answer(self) -> None:
        answer = self.new("a")
        self.talk.service.say(answer)
        self.talk.service.finish()
        self.talk.chat.tick()
        self.tree.answer(answer)
        self.tree.go_on()

    @rule()
    def ask(self) -> None:
        question = self.new("q")
        self.talk.ask(question)
        self.tree.ask(question)
        self.answered()

    @precondition(lambda self: self.messages)
    @rule()
    def retry(self) -> None:
        self.talk.chat.retry()
        self.answer()

    @precondition(lambda self: self.messages)
    @rule()
    def retry_that_comes_to_nothing(self) -> None:
        self.talk.chat.retry()
        self.talk.service.end()
        self.talk.chat.tick()
        self.tree.go_on()

    @precondition(lambda self: self.messages)
    @rule(data=st.data())
    def edit(self, data: st.DataObject) -> None:
        at, question = data.draw(st.sampled_from(self.tree.questions)), self.new("q")
        self.talk.chat.ask(Draft(text=question), self.messages[at])
        self.tree.ask(question, at)
        self.answered()

    @precondition(lambda self: self.messages)
    @rule()
    def undo(self) -> None:
        assert self.talk.chat.undo().text == self.tree.undo()

    @rule()
    def redo(self) -> None:
        if self.tree.can_redo:
            self.talk.chat.redo()
            self.tree.redo()
        else:
            with pytest.raises(EmberError, match="nothing to bring back"):
                self.talk.chat.redo()

    @precondition(lambda self: self.tree.varied)
    @rule(data=st.data())
    def choose(self, data: st.DataObject) -> None:
        at = data.draw(st.sampled_from(self.tree.varied))
        wanted = data.draw(st.integers(0, len(self.tree.nodes[at].after) - 1))
        self.talk.chat.choose(self.messages[at], wanted)
        self.tree.choose(at, wanted)

    @precondition(lambda self: self.messages)
    @rule()
    def load(self) -> None:
        chat = self.talk.chat
        assert chat.chat.id is not None
        chat.show_chat(chat.store.load(chat.chat.id))
        self.tree.go_on()

    @precondition(lambda self: self.messages)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.messages) - 1))
        self.talk.chat.fork(self.messages[at])
        self.tree = self.tree.cut(at)

    @precondition(lambda self: self.messages)
    @rule()
    def through_a_file(self) -> None:
        self.talk.chat.show_chat(from_json(as_json(self.talk.chat.chat)))
        self.talk.chat.rename("imported")
        self.tree.go_on()

    @invariant()
    def it_says_what_the_tree_says(self) -> None:
        assert [each.text for each in self.messages] == self.tree.texts
        assert variants_of(self.messages) == self.tree.variants

    @invariant()
    def the_file_says_it_too(self) -> None:
        chat = self.talk.chat
        if chat.chat.id is not None:
            loaded = chat.store.load(chat.chat.id)
            assert [each.text for each in loaded.messages] == [each.text for each in self.messages]


TestHistories = Histories.TestCase
TestHistories.settings = settings(deadline=None, max_examples=40, stateful_step_count=30)
