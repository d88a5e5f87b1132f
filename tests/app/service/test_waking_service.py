"""The chat's service keeps what it holds between answers, and takes it back after a start."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.events import Completion, Finished
from app.sampling import Sampling
from app.service.contract import Ask, CacheWish, ModelInfo, Prepared
from app.service.live_service import LiveService
from app.wake.folder import PieceFolder
from app.wake.waking import Waking
from kvcache import Backend, CacheConfig
from models.text.messages import Message, Role
from tests.app.service.test_live_service import turns
from tests.patience import patience

CONFIG = CacheConfig(backend=Backend.CPU, hot=16, block=8)
QUESTION = "ba ce di fo gu " * 11

Open = Callable[[], LiveService]


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """The folder of what is kept, which is not there yet."""
    return tmp_path / "kept"


@pytest.fixture
def opened(tiny_path: Path, kept: Path) -> Iterator[Open]:
    """Makes services that share a folder, as starts of the program do."""
    made = list[LiveService]()

    def make() -> LiveService:
        service = LiveService(CONFIG, waking=Waking(PieceFolder(kept)))
        made.append(service)
        list(service.load(str(tiny_path)))
        return service

    yield make
    for service in made:
        service.close()


def ask(service: LiveService, *messages: Message) -> tuple[Prepared, Completion]:
    """The prompt and the answer."""
    prepared, *_, last = service.answer(Ask(messages=messages, max_tokens=9))
    assert isinstance(prepared, Prepared)
    assert isinstance(last, Finished)
    return prepared, last.completion


def test_a_chat_that_is_reopened_goes_on_where_it_was(opened: Open, kept: Path) -> None:
    first, live = opened(), opened()
    _, answer = ask(first, *turns(QUESTION))
    ask(live, *turns(QUESTION))
    _rested(kept, 1)
    again = turns(QUESTION, answer.text, "fo gu")
    prepared, woken = ask(opened(), *again)
    other, expected = ask(live, *again)
    assert (prepared.woken > 64, other.woken) == (True, 0)
    assert woken.reused_tokens == prepared.woken
    # All but the answer's last token, which no model has read.
    assert prepared.ends[1] - prepared.woken <= 2
    assert woken.prompt_tokens == expected.prompt_tokens


def test_an_endless_chat_that_is_reopened_leaves_nothing_out(opened: Open, kept: Path) -> None:
    """More was said than the window holds: what it held is on disk, and no turn is dropped."""
    service, said = opened(), turns(QUESTION)
    for _ in range(3):
        _, answer = ask(service, *said)
        said = turns(*(each.content for each in said), answer.text, "fo gu ba ce di " * 3)
    _, answer = ask(service, *said)
    service.close()
    again = turns(*(each.content for each in said), answer.text, "fo gu")
    other = opened()
    (weight,) = other.weigh(Ask(messages=again, max_tokens=9))
    prepared, woken = ask(other, *again)
    assert prepared.prompt_tokens > 3 * weight.window
    assert (weight.tokens, weight.dropped, weight.fits) == (prepared.prompt_tokens, 0, True)
    assert prepared.dropped == 0
    assert woken.reused_tokens == prepared.woken > 3 * 100
    assert weight.tokens - weight.new == prepared.woken
    # Without what is kept, whole turns of it are left out.
    other.close()
    for path in kept.iterdir():
        path.unlink()
    prepared, _ = ask(opened(), *again)
    assert prepared.dropped > 0
    assert prepared.prompt_tokens <= weight.window


def test_a_chat_whose_cache_was_changed_is_woken_as_it_is_now(tiny_path: Path, kept: Path) -> None:
    def service(config: CacheConfig) -> LiveService:
        made = LiveService(config, waking=Waking(PieceFolder(kept)))
        list(made.load(str(tiny_path)))
        return made

    wish = CacheWish(kv="q8/q4", ctx=0, hot=16, keep="0")
    first, said = service(CONFIG), turns(QUESTION)
    _, answer = ask(first, *said)
    _rested(kept, 1)
    assert isinstance(list(first.change_cache(wish))[-1], ModelInfo)
    _rested(kept, 2)
    first.close()
    again = turns(QUESTION, answer.text, "fo gu")
    for config in (wish.over(CONFIG), CONFIG):
        other = service(config)
        prepared, woken = ask(other, *again)
        assert woken.reused_tokens == prepared.woken > 64
        other.close()


def test_a_chat_between_others_is_woken_again(opened: Open, kept: Path) -> None:
    service = opened()
    one, other = turns(QUESTION), turns("gu fo")
    ask(service, *one)
    _rested(kept, 1)
    assert ask(service, *other)[0].woken == 0
    prepared, answer = ask(service, *one)
    assert prepared.woken > 64
    assert answer.reused_tokens == prepared.woken


def test_a_question_does_not_wait_for_a_rest(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rest that would take for ever ends with its step when something is asked."""
    service, endless = opened(), threading.Event()

    def resting(_waking: Waking, _engine: object, _said: object) -> Iterator[None]:
        while True:
            endless.set()
            yield

    monkeypatch.setattr(Waking, "rest", resting)
    ask(service, *turns(QUESTION))
    assert endless.wait(60)
    assert ask(service, *turns("ba"))[1].tokens
    service.close()


def test_a_disk_that_refuses_is_said_once_with_an_answer(opened: Open, kept: Path) -> None:
    kept.write_text("a file")
    service = opened()
    assert ask(service, *turns(QUESTION))[0].notes == ()
    _refused(service)
    notes = ask(service, *turns(QUESTION, "ba", "ce"))[0].notes
    assert [note.split(":")[0] for note in notes] == ["chats are not kept ready on disk"]
    assert ask(service, *turns(QUESTION, "ba", "di"))[0].notes == ()


def test_a_system_prompt_is_found_in_another_chat(opened: Open, kept: Path) -> None:
    system = Message(role=Role.SYSTEM, content="ba ce di fo gu " * 7)
    ask(opened(), system, *turns("ba"))
    _rested(kept, 1)
    prepared, answer = ask(opened(), system, *turns("gu"))
    assert prepared.woken > 64
    assert answer.reused_tokens == prepared.woken


@pytest.mark.network
def test_smollm2_goes_on_in_another_process_as_it_would_have_here(
    smollm2_path: Path, kept: Path
) -> None:
    """A sampled chat of hundreds of tokens, some of them cold: the same ids are read again."""
    notes = "Robots count stars. " * 90

    def service() -> LiveService:
        made = LiveService(CacheConfig(), waking=Waking(PieceFolder(kept)))
        list(made.load(str(smollm2_path)))
        return made

    live = service()
    asked = Message(role=Role.USER, content=notes + "Tell me more of them.")
    sampling = Sampling(temperature=1.2, seed=3)
    *_, last = live.answer(Ask(messages=(asked,), max_tokens=40, sampling=sampling))
    assert isinstance(last, Finished)
    _rested(kept, 1)
    again = (*turns(asked.content, last.completion.text, "Why?"),)
    woken = service()
    prepared, got = ask(woken, *again)
    other, expected = ask(live, *again)
    live.close()
    woken.close()
    assert prepared.woken == got.reused_tokens == expected.reused_tokens > 400
    assert (prepared.prompt_tokens, prepared.ends) == (other.prompt_tokens, other.ends)
    assert (got.tokens, got.text) == (expected.tokens, expected.text)


def _rested(folder: Path, rests: int) -> None:
    """Wait until so many chats are kept."""
    until = time.monotonic() + patience(30)
    while sum(name.endswith(".rest") for name in PieceFolder(folder).pieces()) < rests:
        assert time.monotonic() < until
        time.sleep(0.02)


def _refused(service: LiveService) -> None:
    """Wait until the disk has refused."""
    until = time.monotonic() + patience(30)
    assert service._waking is not None
    while service._waking._notes.empty():
        assert time.monotonic() < until
        time.sleep(0.02)
