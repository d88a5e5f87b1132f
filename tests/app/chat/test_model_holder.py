"""Models of a chat: loaded, fetched, and the one that runs meanwhile."""

import pytest

from app.chat.state import Phase
from kvcache import EmberError
from models.errors import ModelNotFoundError
from tests.app.chat.talk import Talk
from tests.app.service.scripted_service import layer_stats


def test_a_failed_load_says_why_and_the_next_works() -> None:
    talk = Talk(holds_load=True)
    talk.service.load_error = EmberError("no such file")
    talk.service.finish_load()
    talk.chat.tick()
    assert talk.chat.phase is Phase.NO_MODEL
    assert talk.chat.problem is not None
    assert talk.chat.problem.cause == "no such file"
    with pytest.raises(EmberError, match="no model"):
        talk.chat.retry()
    talk.service.load_error = None
    talk.chat.load("here")
    talk.service.finish_load()
    talk.chat.tick()
    assert talk.chat.model is not None
    assert talk.chat.problem is None


@pytest.mark.parametrize("error", [ModelNotFoundError("no such file"), EmberError("damaged")])
def test_the_model_that_runs_stays_until_the_next_has_loaded(error: EmberError) -> None:
    talk = Talk(holds_load=True)
    talk.service.finish_load()
    talk.chat.tick()
    before = talk.chat.model
    assert before is not None
    talk.service.load_error = error
    talk.chat.load("gone")
    talk.chat.tick()
    assert (talk.chat.phase, talk.chat.model) == (Phase.LOADING, before)
    talk.ask("who answers?")
    talk.service.finish_load()
    talk.chat.tick()
    assert talk.chat.problem is not None
    assert talk.chat.problem.cause == str(error)
    assert talk.chat.model is before
    assert talk.asked == ["who answers?"]
    talk.service.say("I")
    talk.service.finish()
    talk.chat.tick()
    talk.ask("still?")
    assert [talk.chat.problem] == [None]


def test_a_model_that_had_to_make_room_has_gone() -> None:
    talk = Talk(holds_load=True)
    talk.service.finish_load()
    talk.chat.tick()
    talk.chat.load("large")
    assert talk.chat.busy
    talk.service.make_room()
    talk.chat.stop()
    talk.chat.tick()
    assert talk.chat.phase is Phase.NO_MODEL


def test_figures_are_those_of_the_chat_that_is_shown(talk: Talk) -> None:
    talk.exchange("one", "1")
    talk.service.stats = layer_stats(sink=4, hot=9, layers=3)
    first = talk.chat.chat
    talk.chat.new_chat()
    empty = talk.chat.layer_stats()
    assert [(each.total, each.held_bytes) for each in empty] == [(0, 0)] * 3
    assert [talk.chat.last] == [None]
    assert talk.chat.meter.speed().average == 0
    assert first.id is not None
    talk.chat.show_chat(first)
    assert [each.total for each in talk.chat.layer_stats()] == [13] * 3
    again = talk.chat.store.load(first.id)
    talk.chat.show_chat(again)
    assert talk.chat.last is not None
    assert (talk.chat.last.prompt_tokens, talk.chat.last.decode_tps) == (10, 42.0)
    talk.chat.show_chat(first)
    talk.chat.fork()
    assert [each.total for each in talk.chat.layer_stats()] == [13] * 3


def test_a_model_that_stays_is_told_of_once() -> None:
    talk = Talk(notes=["one thing"])
    assert talk.chat.notices == ["one thing"]
    talk.service.load_error = ModelNotFoundError("no such file")
    talk.chat.load("gone")
    talk.chat.tick()
    assert talk.chat.model is not None
    assert talk.chat.notices == ["one thing"]
    talk.service.load_error = None
    talk.chat.load("m")
    talk.chat.tick()
    assert talk.chat.notices == ["one thing", "one thing"]


def test_a_missing_model_is_fetched_then_loaded(talk: Talk) -> None:
    talk.service.missing.add("big")
    talk.chat.use("big")
    talk.ask("meanwhile")
    talk.service.fetched(1, 2)
    talk.service.fetched(2, 2)
    talk.chat.tick()
    assert talk.service.loads == ["m"]
    talk.service.say("ok")
    talk.service.finish()
    talk.chat.tick()
    talk.chat.tick()
    assert talk.service.loads == ["m", "big"]
    assert talk.texts == ["meanwhile", "ok"]


def test_a_stopped_download_loads_nothing(talk: Talk) -> None:
    talk.service.missing.add("big")
    talk.chat.use("big")
    talk.chat.models.stop_fetch()
    talk.chat.tick()
    assert talk.chat.models.fetching is None
    assert talk.chat.problem is None
    assert talk.service.loads == ["m"]
