"""The chat without a screen."""

from pathlib import Path

import pytest

from app.chat.settings import Settings
from app.chat.state import AnswerSettings, Draft, Phase
from app.events import FinishReason, TextChunk, ThinkingChunk
from app.job import Job
from app.sampling import Sampling
from app.service.contract import LoadEvent, Prepared, TooLong
from app.sessions.chat import Attachment, Chat, ChatMessage, State, Thought
from app.sessions.store import SessionStore
from kvcache import EmberError
from models.text.messages import Role
from tests.app.chat.talk import Talk


def test_the_whole_conversation_is_sent(talk: Talk) -> None:
    talk.chat.set_system("be brief")
    talk.exchange("one", "1")
    talk.ask("two")
    assert talk.asked == ["be brief", "one", "1", "two"]


def test_the_answer_is_saved_at_least_every_second(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    talk = Talk(SessionStore.open(path))

    def saved() -> list[str]:
        chat = SessionStore.open(path).latest()
        return [message.text for message in chat.messages] if chat else []

    talk.ask("why?")
    assert saved() == ["why?"]
    talk.service.read(10, 10)
    talk.service.say("be", "cause")
    talk.clock.now += 0.5
    talk.chat.tick()
    assert saved() == ["why?"]
    talk.service.say(" it")
    talk.clock.now += 0.6
    talk.chat.tick()
    assert saved() == ["why?", "because it"]


def test_speed_is_that_of_the_tokens_not_of_the_screen(talk: Talk) -> None:
    talk.ask("one")
    for count in range(1, 12):
        talk.service.put(TextChunk(row=0, text="x", tokens=count, at=7.0 + count / 130))
    talk.clock.now += 1.0
    talk.chat.tick()
    speed = talk.chat.meter.speed()
    assert speed.now == pytest.approx(130)
    assert speed.average == pytest.approx(130)


def test_tokens_of_thinking_count_for_speed_and_for_where_an_answer_ends(talk: Talk) -> None:
    talk.ask("one")
    talk.service.read(10, 10)
    for count in range(1, 12):
        at = 7.0 + count / 130
        chunk = TextChunk(row=0, text="x", tokens=count, at=at)
        thinking = ThinkingChunk(
            row=0, text="y", tokens=count, thinking_tokens=count, seconds=count / 130, at=at
        )
        talk.service.put(thinking if count < 7 else chunk)
    talk.chat.tick()
    assert talk.chat.meter.speed().average == pytest.approx(130)
    answer = talk.chat.chat.messages[-1]
    assert (answer.text, answer.end) == ("x" * 5, 21)
    assert answer.thought == Thought(text="y" * 6, tokens=6, seconds=6 / 130)


def test_one_question_waits_and_a_second_is_refused(talk: Talk) -> None:
    talk.ask("one")
    talk.chat.ask(Draft(text="two"))
    with pytest.raises(EmberError, match="waits already"):
        talk.chat.ask(Draft(text="three"))
    talk.service.say("1")
    talk.service.finish()
    talk.chat.tick()
    assert talk.asked == ["one", "1", "two"]


def test_a_question_that_waits_stays_with_its_chat() -> None:
    talk = Talk(holds_load=True)
    talk.service.finish_load()
    talk.chat.tick()
    talk.exchange("one", "1")
    talk.chat.load("another")
    talk.ask("two")
    for leave in (talk.chat.new_chat, talk.chat.fork, lambda: talk.chat.show_chat(Chat())):
        with pytest.raises(EmberError, match="waits for the model; Esc"):
            leave()
    talk.service.finish_load()
    talk.chat.tick()
    assert talk.texts == ["one", "1", "two", ""]


def test_a_change_of_the_cache_that_was_stopped_is_none(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: list[str] = []
    stopped = Job[LoadEvent]()
    stopped.finish()
    monkeypatch.setattr(talk.service, "change_cache", lambda _wish: stopped)
    talk.chat.change_cache(Settings(kv="q8").cache(), lambda: changes.append("q8"))
    with pytest.raises(EmberError, match="the cache is changing: Esc stops it"):
        talk.chat.change_cache(Settings(kv="q4").cache(), lambda: changes.append("q4"))
    talk.chat.tick()
    assert not talk.chat.busy
    assert talk.chat.notices == ["stopped: the cache stays as it was"]
    assert changes == []


def test_a_stop_in_prefill_leaves_the_question_alone(talk: Talk) -> None:
    talk.ask("long")
    talk.service.read(256, 1000)
    talk.chat.tick()
    assert talk.chat.phase is Phase.READING
    talk.chat.stop()
    talk.chat.tick()
    assert talk.texts == ["long"]
    talk.ask("more")
    assert talk.asked == ["long\n\nmore"]


def test_retry_replaces_the_answer(talk: Talk) -> None:
    talk.exchange("one", "bad")
    talk.chat.retry()
    talk.service.say("good")
    talk.service.finish()
    talk.chat.tick()
    assert talk.texts == ["one", "good"]
    assert talk.asked == ["one"]


def test_continue_goes_on_in_the_same_message(talk: Talk) -> None:
    talk.exchange("count", "one two")
    talk.chat.continue_()
    assert talk.service.asks[-1].continues
    assert talk.asked == ["count", "one two"]
    talk.service.say(" three")
    talk.service.finish()
    talk.chat.tick()
    assert talk.texts == ["count", "one two three"]
    figures = talk.chat.chat.messages[-1].figures
    assert figures is not None
    assert figures.tokens == 2


def test_a_stopped_continuation_keeps_what_was_there(talk: Talk) -> None:
    talk.exchange("count", "one two")
    talk.chat.continue_()
    talk.chat.stop()
    talk.chat.tick()
    assert talk.texts == ["count", "one two"]


def test_undo_gives_the_question_back(talk: Talk) -> None:
    talk.exchange("one", "1")
    talk.chat.ask(Draft(text="two", attachments=(Attachment(name="a", text="b"),)))
    talk.service.say("2")
    talk.service.finish()
    talk.chat.tick()
    draft = talk.chat.undo()
    assert (draft.text, draft.attachments[0].name) == ("two", "a")
    assert talk.texts == ["one", "1"]


def test_edit_drops_what_followed(talk: Talk) -> None:
    talk.exchange("one", "1")
    talk.exchange("two", "2")
    talk.chat.ask(Draft(text="uno"), talk.chat.chat.messages[0])
    assert talk.asked == ["uno"]
    assert talk.texts == ["uno", ""]


def test_a_fork_is_another_saved_chat(talk: Talk) -> None:
    talk.exchange("one", "1")
    talk.exchange("two", "2")
    original = talk.chat.chat
    assert talk.chat.fork(original.messages[1]) is None
    assert talk.texts == ["one", "1"]
    draft = talk.chat.fork(talk.chat.chat.messages[0])
    assert draft == Draft(text="one")
    titles = [each.title for each in talk.chat.store.chats()]
    assert sorted(titles) == ["one", "one (fork)"]  # the other has no words yet
    assert talk.chat.chat.title == "one (fork 2)"
    assert original.id is not None
    assert len(talk.chat.store.load(original.id).messages) == 4


def refuse(talk: Talk) -> None:
    """The question that was asked is too long."""
    talk.service.put(TooLong(prompt_tokens=1200, window=1000))
    talk.service.end()
    talk.chat.tick()


def test_too_long_keeps_the_question_and_asks(talk: Talk) -> None:
    talk.ask("long")
    refuse(talk)
    assert talk.chat.too_long == TooLong(prompt_tokens=1200, window=1000)
    assert talk.texts == ["long"]
    talk.chat.too_long = None
    talk.chat.retry(cuts=True)
    assert talk.service.asks[-1].cuts


def test_nobody_is_asked_about_a_refused_question_that_was_taken_back(talk: Talk) -> None:
    talk.exchange("short", "answer")
    talk.ask("long")
    refuse(talk)
    assert talk.chat.undo() == Draft(text="long")
    assert talk.chat.too_long is None
    talk.chat.redo()
    assert talk.texts == ["short", "answer", "long"]


def test_what_the_window_does_not_hold_is_left_out_marked_and_kept_so(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    talk = Talk(SessionStore.open(path))
    for question in ("one", "two", "three"):
        talk.exchange(question, "answer")
    talk.ask("four")
    talk.service.put(Prepared(prompt_tokens=50, ends=(0, 0, 0, 0, 20, 30, 50), dropped=4))
    talk.service.say("4")
    talk.service.finish()
    talk.chat.tick()
    assert talk.chat.notices == [
        "the window does not hold the whole chat: its first 4 messages (×) are not read"
    ]
    assert [each.end for each in talk.chat.chat.messages[:5]] == [0, 0, 0, 0, 20]
    talk.chat.notices.clear()
    talk.ask("five")
    assert talk.service.asks[-1].left_out == 4
    talk.service.finish()
    talk.chat.tick()
    assert talk.chat.notices == []
    again = SessionStore.open(path).latest()
    assert again is not None
    assert (again.left_out, again.messages[3].end, again.messages[4].end) == (4, 0, None)
    talk.chat.undo()
    talk.chat.ask(Draft(text="uno"), talk.chat.chat.messages[2])
    assert talk.service.asks[-1].left_out == 0  # the last question is always read
    talk.service.put(Prepared(prompt_tokens=60, ends=(10, 20, 30), dropped=0))
    talk.chat.tick()
    assert talk.chat.chat.left_out == 0


def test_a_chat_that_another_window_has_open_is_shown_as_a_copy(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    one, two = Talk(SessionStore.open(path)), Talk(SessionStore.open(path))
    one.exchange("pets", "cats")
    number = one.chat.chat.id
    assert number is not None
    two.chat.show_chat(two.chat.store.load(number))
    assert two.texts == ["pets", "cats"]
    assert two.chat.notices == [
        "this chat is open in another window: what is said here becomes a chat of its own, "
        "“pets (fork)”"
    ]
    assert two.chat.close() is None
    assert [each.title for each in one.chat.store.chats()] == ["pets"]
    two.exchange("more?", "dogs")
    one.exchange("and?", "birds")
    titles = {each.title: each.id for each in one.chat.store.chats()}
    assert sorted(titles) == ["pets", "pets (fork)"]
    words = {
        title: [each.text for each in one.chat.store.load(number).messages]
        for title, number in titles.items()
    }
    assert words["pets"] == ["pets", "cats", "and?", "birds"]
    assert words["pets (fork)"] == ["pets", "cats", "more?", "dogs"]
    # Who goes on to another chat leaves this one to others.
    one.chat.new_chat()
    two.chat.notices.clear()
    two.chat.show_chat(two.chat.store.load(number))
    assert (two.chat.notices, two.chat.chat.id) == ([], number)


def test_a_draft_is_weighed_with_all_that_goes_along(talk: Talk, tmp_path: Path) -> None:
    notes = tmp_path / "notes.md"
    notes.write_text("remember the milk")
    talk.chat.set_system("be brief")
    talk.exchange("one", "1")
    draft = Draft(text=f"read @{notes}", attachments=(Attachment(name="b", text="paste"),))
    job = talk.chat.weigh(draft)
    assert job is not None
    (weight,) = job.poll()
    talk.chat.ask(draft)
    assert weight.tokens == sum(map(len, talk.asked))
    assert "remember the milk" in talk.asked[-1]
    assert talk.chat.weigh(draft) is None  # it answers
    talk.service.finish()
    talk.chat.tick()
    job = talk.chat.weigh(Draft(text="uno"), talk.chat.chat.messages[0])
    assert job is not None
    assert [each.tokens for each in job.poll()] == [len("be brief" + "uno")]
    assert len(talk.texts) == 4
    (tmp_path / "no.bin").write_bytes(b"\0")
    with pytest.raises(EmberError, match=r"no\.bin"):
        talk.chat.weigh(Draft(text=f"@{tmp_path}/no.bin"))


def test_an_error_becomes_a_card_and_the_partial_answer_stays(talk: Talk) -> None:
    talk.ask("one")
    talk.service.say("par")
    talk.service.fail(EmberError("the disk is gone: plug it in"))
    talk.chat.tick()
    assert talk.texts == ["one", "par"]
    assert talk.chat.chat.messages[-1].state is State.FAILED
    assert talk.chat.problem is not None
    assert "plug it in" in talk.chat.problem.cause
    talk.ask("again")
    assert talk.chat.problem is None


def test_what_is_said_of_a_prompt_is_a_notice(talk: Talk) -> None:
    talk.ask("one")
    talk.service.put(Prepared(prompt_tokens=5, ends=(5,), notes=("another template",)))
    talk.chat.tick()
    assert talk.chat.notices == ["another template"]


def test_an_answer_that_was_stopped_before_it_was_asked_for(talk: Talk) -> None:
    talk.ask("one")
    talk.service.end()
    talk.chat.tick()
    assert talk.texts == ["one"]
    talk.chat.retry()
    talk.service.say("1")
    talk.service.finish()
    talk.chat.tick()
    talk.chat.continue_()
    talk.service.end()
    talk.chat.tick()
    assert (talk.texts, talk.chat.busy) == (["one", "1"], False)
    assert talk.chat.chat.messages[-1].state is State.STOPPED


def test_messages_know_where_they_end(talk: Talk) -> None:
    talk.exchange("one", "1")
    talk.ask("three")
    ends = [message.end for message in talk.chat.chat.messages]
    assert ends[:3] == [3, 4, 9]
    talk.service.read(9, 9)
    talk.service.say("a", "b")
    talk.chat.tick()
    assert talk.chat.chat.messages[-1].end == 11


def test_actions_are_refused_while_the_model_answers(talk: Talk) -> None:
    talk.ask("one")
    chat = talk.chat
    for refused in (chat.retry, chat.continue_, chat.undo, chat.fork, chat.new_chat):
        with pytest.raises(EmberError, match="stop the answer"):
            refused()
    with pytest.raises(EmberError, match="stop the answer"):
        chat.load("other")


def test_there_is_nothing_to_do_in_an_empty_chat(talk: Talk) -> None:
    for refused in (talk.chat.retry, talk.chat.continue_, talk.chat.undo, talk.chat.fork):
        with pytest.raises(EmberError, match=r"nothing|no answer"):
            refused()


def test_a_full_disk_is_told_once_and_the_chat_goes_on(tmp_path: Path) -> None:
    store = SessionStore.open(tmp_path / "chats.db")
    talk = Talk(store)
    store.close()
    talk.exchange("one", "1")
    talk.exchange("two", "2")
    assert [notice for notice in talk.chat.notices if "not saved" in notice] != []
    assert len(talk.chat.notices) == 1
    assert talk.texts == ["one", "1", "two", "2"]


def test_a_retry_keeps_the_old_answer_on_disk_until_there_are_new_words(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    talk = Talk(SessionStore.open(path))
    talk.exchange("one", "old")
    talk.chat.retry()

    def saved() -> list[str]:
        chat = SessionStore.open(path).latest()
        return [message.text for message in chat.messages] if chat else []

    assert saved() == ["one", "old"]
    talk.service.say("new")
    talk.clock.now += 1.1
    talk.chat.tick()
    assert saved() == ["one", "new"]


def test_leaving_saves_what_is_unfinished_and_what_waits(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    talk = Talk(SessionStore.open(path))
    talk.ask("one")
    talk.service.say("half an ans")
    talk.chat.ask(Draft(text="two"))
    assert talk.chat.close() is None
    chat = SessionStore.open(path).latest()
    assert chat is not None
    assert [(each.text, each.state) for each in chat.messages] == [
        ("one", State.COMPLETE),
        ("half an ans", State.STOPPED),
        ("two", State.COMPLETE),
    ]


def test_a_damaged_chat_is_told_when_it_is_shown(talk: Talk) -> None:
    message = ChatMessage(role=Role.USER, text="?")
    talk.chat.show_chat(Chat(messages=[message], damaged=1))
    assert "1 messages of this chat are damaged" in talk.chat.notices[0]


def test_an_attachment_is_fenced_beyond_what_it_contains() -> None:
    message = ChatMessage(
        role=Role.USER,
        text="explain",
        attachments=(Attachment(name="a.md", text="```\ncode\n```\n"),),
    )
    assert message.content == "a.md:\n````\n```\ncode\n```\n````\n\nexplain"


def test_the_chat_s_sampling_goes_before_the_user_s_and_that_before_the_model_s(
    talk: Talk,
) -> None:
    def asked() -> Sampling:
        talk.exchange("one", "1")
        return talk.service.asks[-1].sampling

    assert asked() == Sampling()  # its makers want it greedy
    talk.chat.use_settings(AnswerSettings(sampling={"temp": 0.5, "top_p": 0.9}, seed=7))
    assert asked() == Sampling(temperature=0.5, top_p=0.9, seed=7)
    talk.chat.set_own("", {"temp": 0.2, "top_k": 40})
    assert asked() == Sampling(temperature=0.2, top_p=0.9, top_k=40, seed=7)
    # What a damaged file made of it is left out.
    talk.chat.set_own("", {"temp": 1e30})
    assert asked() == Sampling(temperature=0.5, top_p=0.9, seed=7)


def test_an_answer_that_repeats_itself_is_answered_otherwise_once(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    talk = Talk(SessionStore.open(path))
    talk.ask("one")
    assert not talk.service.asks[-1].allow_loops
    talk.service.say("1", "1", "1")
    talk.service.finish(FinishReason.LOOP)
    talk.chat.tick()
    figures = talk.chat.chat.messages[-1].figures
    assert figures is not None
    assert (figures.finish_reason, talk.chat.chat.messages[-1].state) == ("loop", State.COMPLETE)
    again = SessionStore.open(path).latest()
    assert again is not None
    assert again.messages[-1].figures == figures
    talk.chat.retry()
    assert talk.service.asks[-1].sampling == Sampling(temperature=0.8, repeat_penalty=1.2)
    assert "with temp 0.8 repeat_penalty 1.2, this once" in talk.chat.notices[-1]
    talk.service.say("2")
    talk.service.finish()
    talk.chat.tick()


def test_a_retry_where_chance_has_no_part_draws_once(talk: Talk) -> None:
    talk.exchange("one", "1")
    talk.chat.retry()
    assert talk.service.asks[-1].sampling == Sampling(temperature=0.7, top_p=0.95)
    assert "with temp 0.7 top_p 0.95, this once" in talk.chat.notices[-1]
    talk.service.say("2")
    talk.service.finish(FinishReason.CANCELLED)
    talk.chat.tick()
    talk.chat.retry()
    assert talk.service.asks[-1].sampling == Sampling()
    talk.service.finish()
    talk.chat.tick()
    talk.chat.use_settings(AnswerSettings(sampling={"temp": 0.5}))
    talk.chat.retry()
    assert talk.service.asks[-1].sampling == Sampling(temperature=0.5)


def test_what_a_retry_is_given_is_for_that_answer(talk: Talk) -> None:
    talk.exchange("one", "1")
    talk.chat.retry(once={"temp": 1.5})
    assert talk.service.asks[-1].sampling == Sampling(temperature=1.5)
    talk.service.finish(FinishReason.LOOP)
    talk.chat.tick()
    talk.exchange("two", "2")
    assert talk.service.asks[-1].sampling == Sampling()
