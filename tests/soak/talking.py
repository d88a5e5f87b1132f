"""Many chats with a real model and a real file: asked, edited, forked, undone, at random.

After each step three things must hold: the controller and the file say what a tree of all that
was said has (`tests/app/chat/tree.py`); the answer is the one that an engine gives which has read
the same from nothing; and the cache holds that engine's tokens, keys and values.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from random import Random
from threading import Event as Flag
from typing import TypeVar
from unittest.mock import patch

import numpy as np

from app.chat.controller import ChatController
from app.chat.state import AnswerSettings, Draft
from app.engine import Engine, Request
from app.events import Completion, Event, Finished
from app.service.live_service import LiveService
from app.sessions.chat import ChatMessage
from app.sessions.export import as_json, from_json
from app.sessions.store import SessionStore
from app.wake.folder import PieceFolder
from app.wake.waking import Waking
from kvcache import EmberError
from models.gguf.tensor_types import TensorType
from tests.app.chat.test_variants import variants_of
from tests.app.chat.tree import Tree
from tests.app.serve.conftest import EXACT, write_served

T = TypeVar("T")

# No token is ever encoded, and with weights of F32 no activation rounded to eight bits, so that
# steps of other lengths read the same.
_CACHE = replace(EXACT, max_tokens=2048, hot=2048)
_WORDS = ["ba", "ce", "di", "fo", "gu", "star", "robot", "counts", "every", "12", "é", "你好"]
_MOST_TOKENS = 12
# Of what a cache holds, beside one that read the same in other steps.
_TOLERANCE = 1e-4
_STEPS_OF_A_CHAT = 12


class Talking:
    """Chats that a seed decides, in a folder. walked: how many steps of each kind there were."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._rng, self._folder = Random(seed), folder
        self._model = write_served(folder / "small.gguf", TensorType.F32)
        self._requests: list[Request] = []
        self._tree, self._trees = Tree(), dict[int, Tree]()
        self.walked: Counter[str] = Counter()
        self.chats = self.tokens = 0

    def __str__(self) -> str:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.walked.most_common())
        return f"{self.walked.total():,} steps ({kinds}), {self.tokens:,} tokens"

    def run(self, chats: int) -> None:
        """Raises AssertionError where something else is said, saved or held than must be."""
        with patch.object(Engine, "generate", self._noting(Engine.generate)):
            self._start()
            try:
                while self.chats < chats:
                    self._new_chat()
                    for _ in range(self._rng.randint(1, 2 * _STEPS_OF_A_CHAT)):
                        self._step()
            finally:
                self._end()

    def _noting(
        self, generate: Callable[[Engine, Request, Flag | None], Iterator[Event]]
    ) -> Callable[[Engine, Request, Flag | None], Iterator[Event]]:
        self._generate = generate

        def noted(engine: Engine, request: Request, cancel: Flag | None = None) -> Iterator[Event]:
            self._requests.append(request)
            yield from generate(engine, request, cancel)

        return noted

    def _start(self) -> None:
        """A program that begins: nothing but what is on disk."""
        kept = PieceFolder(self._folder / "kept")
        self._service = LiveService(_CACHE, waking=Waking(kept))
        self._store = SessionStore.open(self._folder / "chats.db")
        settings = AnswerSettings(sampling={"temp": 0.0}, seed=3, max_tokens=_MOST_TOKENS)
        self._chat = ChatController(self._service, settings, store=self._store)
        self._chat.load(str(self._model))
        self._settle()
        assert self._chat.problem is None, self._chat.problem
        self._other = self._on_its_thread(lambda: Engine(self._engine.loaded, _CACHE))

    def _end(self) -> None:
        assert self._chat.close() is None
        del self._other
        self._service.close()
        self._store.close()

    @property
    def _engine(self) -> Engine:
        reader = self._service._reader
        assert reader is not None
        assert reader.engine is not None
        return reader.engine

    @property
    def _messages(self) -> Sequence[ChatMessage]:
        return self._chat.chat.messages

    def _on_its_thread(self, function: Callable[[], T]) -> T:
        return self._service._thread.call(function)

    def _settle(self) -> None:
        while self._chat.busy:
            self._chat.tick()
        self._chat.tick()

    # -- steps --

    def _step(self) -> None:
        kinds = {
            self._ask_and_wait: 10,
            self._ask_and_stop: 3,
            self._retry: 4,
            self._edit: 3,
            self._continue: 2,
            self._undo: 3,
            self._redo: 3,
            self._choose: 3,
            self._fork: 1,
            self._open_another: 2,
            self._through_a_file: 1,
            self._restart: 1,
            self._delete: 1,
        }
        step = self._ask_and_wait
        if self._messages:
            (step,) = self._rng.choices(list(kinds), list(kinds.values()))
        name = step.__name__.strip("_").replace("_", " ")
        try:
            step()
            self._check()
        except (AssertionError, EmberError) as error:
            where = f"step {self.walked.total()}, {name}"
            raise AssertionError(f"{where}: {type(error).__name__}: {error}") from error
        self.walked[name] += 1

    def _ask_and_wait(self) -> None:
        self._ask()

    def _ask_and_stop(self) -> None:
        self._ask(stops_after=self._rng.randint(0, 4))

    def _retry(self) -> None:
        self._chat.retry()
        self._answered()

    def _edit(self) -> None:
        self._ask(instead_of=self._rng.choice(self._tree.questions))

    def _continue(self) -> None:
        last = self._tree.nodes[-1]
        if last.text and not last.asks:
            self._chat.continue_()
            self._answered(continues=True)

    def _undo(self) -> None:
        assert self._chat.undo().text == self._tree.undo()

    def _redo(self) -> None:
        if self._tree.can_redo:
            self._chat.redo()
            self._tree.redo()

    def _choose(self) -> None:
        if self._tree.varied:
            at = self._rng.choice(self._tree.varied)
            wanted = self._rng.randrange(len(self._tree.nodes[at].after))
            self._chat.choose(self._messages[at], wanted)
            self._tree.choose(at, wanted)

    def _fork(self) -> None:
        at = self._rng.randrange(len(self._messages))
        self._chat.fork(self._messages[at])
        self._tree = self._tree.cut(at)

    def _open_another(self) -> None:
        self._open(self._rng.choice(list(self._trees)))

    def _through_a_file(self) -> None:
        self._chat.show_chat(from_json(as_json(self._chat.chat)))
        self._chat.rename("imported")
        self._tree = deepcopy(self._tree)
        self._tree.go_on()

    def _restart(self) -> None:
        number = self._chat.chat.id
        assert number is not None
        self._end()
        self._start()
        self._open(number)

    def _delete(self) -> None:
        others = [each for each in self._trees if each != self._chat.chat.id]
        if others:
            gone = self._rng.choice(others)
            self._chat.delete(gone)
            del self._trees[gone]

    def _new_chat(self) -> None:
        self._chat.new_chat()
        self._tree = Tree()
        self.chats += 1

    def _open(self, number: int) -> None:
        self._chat.show_chat(self._store.load(number))
        self._tree = self._trees[number]
        self._tree.go_on()

    def _ask(self, instead_of: int | None = None, stops_after: int | None = None) -> None:
        text = " ".join(self._rng.choices(_WORDS, k=self._rng.randint(1, 20)))
        editing = None if instead_of is None else self._messages[instead_of]
        self._chat.ask(Draft(text=text), editing)
        self._tree.ask(text, instead_of)
        self._answered(stops_after=stops_after)

    def _answered(self, *, continues: bool = False, stops_after: int | None = None) -> None:
        """Wait for the answer; it is what an engine says that knew nothing before."""
        before = self._tree.texts[-1] if continues else ""
        if stops_after is not None:
            for _ in range(stops_after):
                self._chat.tick()
            self._chat.stop()
        self._settle()
        assert self._chat.problem is None, self._chat.problem
        self._tree.go_on()
        completion = self._chat.last
        if stops_after is not None and len(self._messages) < len(self._tree.texts) + 1:
            return  # it ended before its first word
        assert completion is not None
        fresh = self._on_its_thread(lambda: self._fresh(self._requests[-1]))
        self.tokens += len(completion.tokens)
        assert completion.tokens == fresh.tokens[: len(completion.tokens)]
        said = self._messages[-1].text
        if stops_after is None:
            assert said == before + fresh.text, (said, fresh.text)
        else:
            assert fresh.text.startswith(said), (said, fresh.text)
        if continues:
            self._tree.nodes[-1].text = said
        else:
            self._tree.answer(said)

    def _fresh(self, request: Request) -> Completion:
        """What an engine gives that has read nothing before, and held what this one holds."""
        self._other.forget()
        *_, last = self._generate(self._other, request, None)
        assert isinstance(last, Finished)
        held, expected = self._engine.held(), self._other.held()
        differs = [
            at for at, pair in enumerate(zip(held, expected, strict=False)) if len({*pair}) > 1
        ]
        assert not differs, f"of {len(request.prompt)} + {len(held)} tokens these differ: {differs}"
        assert len(held) <= len(expected)
        if len(held) == len(expected):
            for mine, other in zip(self._engine.caches, self._other.caches, strict=True):
                for some, others in zip(mine.unencoded(), other.unencoded(), strict=True):
                    assert (some is None) == (others is None)
                    if some is not None:
                        np.testing.assert_allclose(some, others, atol=_TOLERANCE)
        return last.completion

    # -- what must hold --

    def _check(self) -> None:
        texts = [each.text for each in self._messages]
        assert texts == self._tree.texts, (texts, self._tree.texts)
        assert variants_of(self._messages) == self._tree.variants
        number = self._chat.chat.id
        if number is not None:
            saved = self._store.load(number)
            assert [each.text for each in saved.messages] == texts
            assert variants_of(saved.messages) == self._tree.variants
            self._trees[number] = self._tree
