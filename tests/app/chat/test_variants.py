"""Asking, answering again, editing, taking back and choosing, in any order, against a tree."""

from copy import deepcopy
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from app.chat.state import Draft
from app.sessions.chat import ChatMessage
from app.sessions.export import as_json, from_json
from app.sessions.store import SessionStore
from kvcache import EmberError
from models.text.messages import Role
from tests.app.chat.talk import Talk


@dataclass(kw_only=True)
class Node:
    """Something said, and all that was ever said after it. at: which of these is shown."""

    text: str
    after: list["Node"] = field(default_factory=list)
    at: int = 0

    def say(self, text: str) -> None:
        self.after.append(Node(text=text))
        self.at = len(self.after) - 1

    def shown(self) -> list["Node"]:
        """What is shown from here on, this included."""
        nodes = [self]
        while nodes[-1].after:
            nodes.append(nodes[-1].after[nodes[-1].at])
        return nodes


class Histories(RuleBasedStateMachine):
    """A chat with a scripted model, and what it should say."""

    def __init__(self) -> None:
        super().__init__()
        self.talk = Talk(SessionStore.in_memory())
        self.root = Node(text="")
        self.undone: list[Node] = []
        self.count = 0

    @property
    def nodes(self) -> list[Node]:
        return self.root.shown()

    @property
    def messages(self) -> list[ChatMessage]:
        return self.talk.chat.chat.messages

    def new(self, kind: str) -> str:
        self.count += 1
        return f"{kind}{self.count}"

    def answered(self) -> None:
        """The model reads what is shown, and says something new."""
        asked, answer = [each.text for each in self.nodes[1:]], self.new("a")
        assert "\n\n".join(self.talk.asked) == "\n\n".join(asked)
        self.talk.service.say(answer)
        self.talk.service.finish()
        self.talk.chat.tick()
        self.nodes[-1].say(answer)
        self.undone.clear()

    @rule()
    def ask(self) -> None:
        question = self.new("q")
        self.talk.ask(question)
        self.nodes[-1].say(question)
        self.answered()

    @precondition(lambda self: self.messages)
    @rule()
    def retry(self) -> None:
        self.talk.chat.retry()
        parent = self.nodes[-2] if self.nodes[-1].text[0] == "a" else self.nodes[-1]
        answer = self.new("a")
        self.talk.service.say(answer)
        self.talk.service.finish()
        self.talk.chat.tick()
        parent.say(answer)
        self.undone.clear()

    @precondition(lambda self: self.messages)
    @rule()
    def retry_that_comes_to_nothing(self) -> None:
        self.talk.chat.retry()
        self.talk.service.end()
        self.talk.chat.tick()
        self.undone.clear()

    @precondition(lambda self: self.messages)
    @rule(data=st.data())
    def edit(self, data: st.DataObject) -> None:
        questions = [at for at, each in enumerate(self.messages) if each.role is Role.USER]
        at, question = data.draw(st.sampled_from(questions)), self.new("q")
        self.talk.chat.ask(Draft(text=question), self.messages[at])
        self.nodes[at].say(question)
        self.answered()

    @precondition(lambda self: self.messages)
    @rule()
    def undo(self) -> None:
        self.undone.append(deepcopy(self.root))
        nodes = self.nodes
        at = max(at for at, each in enumerate(nodes) if each.text.startswith("q"))
        parent = nodes[at - 1]
        del parent.after[parent.at]
        parent.at = max(parent.at - 1, 0)
        assert self.talk.chat.undo().text == nodes[at].text

    @rule()
    def redo(self) -> None:
        if self.undone:
            self.talk.chat.redo()
            self.root = self.undone.pop()
        else:
            with pytest.raises(EmberError, match="nothing to bring back"):
                self.talk.chat.redo()

    @precondition(lambda self: any(len(each.after) > 1 for each in self.nodes))
    @rule(data=st.data())
    def choose(self, data: st.DataObject) -> None:
        nodes = self.nodes
        at = data.draw(
            st.sampled_from([at for at, each in enumerate(nodes) if len(each.after) > 1])
        )
        wanted = data.draw(st.integers(0, len(nodes[at].after) - 1))
        self.talk.chat.choose(self.messages[at], wanted)
        nodes[at].at = wanted

    @precondition(lambda self: self.messages)
    @rule()
    def load(self) -> None:
        chat = self.talk.chat
        assert chat.chat.id is not None
        chat.show_chat(chat.store.load(chat.chat.id))
        self.undone.clear()

    @precondition(lambda self: self.messages)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.messages) - 1))
        is_question = self.messages[at].role is Role.USER
        self.talk.chat.fork(self.messages[at])
        last = self.nodes[at if is_question else at + 1]
        last.after.clear()
        last.at = 0
        self.undone.clear()

    @precondition(lambda self: self.messages)
    @rule()
    def through_a_file(self) -> None:
        self.talk.chat.show_chat(from_json(as_json(self.talk.chat.chat)))
        self.talk.chat.rename("imported")
        self.undone.clear()

    @invariant()
    def it_says_what_the_tree_says(self) -> None:
        nodes = self.nodes
        assert [each.text for each in self.messages] == [each.text for each in nodes[1:]]
        for before, message in zip(nodes, self.messages, strict=False):
            count = len(message.variants) if message.variants else 1
            number = message.variants.number(message) if message.variants else 0
            assert (number, count) == (before.at, len(before.after))

    @invariant()
    def the_file_says_it_too(self) -> None:
        chat = self.talk.chat
        if chat.chat.id is not None:
            loaded = chat.store.load(chat.chat.id)
            assert [each.text for each in loaded.messages] == [each.text for each in self.messages]


TestHistories = Histories.TestCase
TestHistories.settings = settings(deadline=None, max_examples=40, stateful_step_count=30)
