"""The chat with models that are real: a tiny random one, and SmolLM2."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from app import layer_losses, memory
from app.chat.settings import Settings
from app.events import Finished, PrefillProgress
from app.job import Job
from app.memory import Memory
from app.service.contract import (
    AnswerEvent,
    Ask,
    CacheChanged,
    CacheWish,
    LetGo,
    LoadEvent,
    ModelInfo,
    Prepared,
    TooLong,
)
from app.service.live_service import LiveService
from app.sessions.store import SessionStore
from app.tui.app import ChatApp
from kvcache import Backend, CacheConfig, EmberError
from kvcache.allocation import Losses
from kvcache.config import DEFAULT_KV
from kvcache.native import library
from kvcache.native.build import Sources
from kvcache.stats import sum_layers
from models.errors import GGUFError, ModelNotFoundError
from models.finding.progress import Progress
from models.gguf.identity import identity
from models.text.messages import Message, Role
from tests.app.tui.conftest import Talk, on_screen

WORDS = "ba ce di fo gu "


def turns(*texts: str) -> tuple[Message, ...]:
    """A conversation of alternating speakers."""
    roles = (Role.USER, Role.ASSISTANT)
    return tuple(Message(role=roles[at % 2], content=text) for at, text in enumerate(texts))


@pytest.fixture
def service(tiny_path: Path) -> Iterator[LiveService]:
    service = LiveService(CacheConfig(backend=Backend.REFERENCE))
    list(service.load(str(tiny_path)))
    yield service
    service.close()


def test_loading_tells_progress_then_the_plan(tiny_path: Path) -> None:
    config = CacheConfig(max_tokens=120, keys="q8", backend=Backend.REFERENCE)
    service = LiveService(config, keep_system="ba")
    *progress, info = service.load(str(tiny_path))
    assert all(isinstance(each, Progress) for each in progress)
    assert isinstance(info, ModelInfo)
    assert (info.window <= 120, info.layers) == (True, 3)
    assert info.kv.startswith("q8/")
    assert 0 < info.max_bytes <= 120 * info.token_bytes
    assert len(service.layer_stats()) == 3
    service.close()


def test_a_load_can_be_stopped_and_another_follow(tiny_path: Path) -> None:
    service = LiveService(CacheConfig(backend=Backend.REFERENCE))
    job = service.load(str(tiny_path))
    service.cancel()
    assert not any(isinstance(each, ModelInfo) for each in job)
    assert not service.layer_stats()
    assert isinstance(list(service.load(str(tiny_path)))[-1], ModelInfo)
    with pytest.raises(EmberError, match="no such file"):
        list(service.load("./nowhere.gguf"))
    service.close()


def test_a_name_of_no_model_leaves_the_present_one(service: LiveService) -> None:
    with pytest.raises(ModelNotFoundError):
        list(service.load("./nowhere.gguf"))
    finished(list(service.answer(Ask(messages=turns(WORDS), max_tokens=5))))


def test_a_damaged_model_leaves_the_present_one(
    service: LiveService, tiny_path: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(tiny_path.read_bytes()[:-999])
    before = finished(list(service.answer(Ask(messages=turns(WORDS), max_tokens=5)))).completion
    with pytest.raises(GGUFError):
        list(service.load(str(damaged)))
    after = finished(list(service.answer(Ask(messages=turns(WORDS), max_tokens=5)))).completion
    assert (after.text, after.reused_tokens) == (before.text, before.prompt_tokens - 1)


@pytest.mark.parametrize("room", [1 << 40, 1 << 10])
def test_two_models_are_in_memory_together_only_where_they_fit(
    service: LiveService, tiny_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    monkeypatch.setattr(memory, "memory", lambda: Memory(most=1 << 40, now=room))
    kept = room == 1 << 40
    events = list(service.load(str(tiny_path)))
    assert any(isinstance(each, LetGo) for each in events) is not kept
    assert isinstance(events[-1], ModelInfo)


def test_the_cache_is_changed_and_holds_what_it_held(tiny_path: Path) -> None:
    """Encoded again by other codecs, in a longer window, and let go in a shorter one."""
    config = CacheConfig(max_tokens=100, hot=8, block=8, backend=Backend.REFERENCE)
    service = LiveService(config)
    info = list(service.load(str(tiny_path)))[-1]
    assert isinstance(info, ModelInfo)
    wish = CacheWish(kv=DEFAULT_KV, ctx=100, hot=8, keep="0")
    first = Ask(messages=turns("ba ce di fo"), max_tokens=9)
    _, last = read(service, first)
    held = sum_layers(service.layer_stats())
    assert held.cold > 0

    def change(wish: CacheWish) -> tuple[str, ModelInfo]:
        *_, changed, model = service.change_cache(wish)
        assert isinstance(changed, CacheChanged)
        assert isinstance(model, ModelInfo)
        return changed.said[0], model

    line, model = change(replace(wish, kv="q8/q4"))
    assert line == (
        f"older tokens are kept as q8/q4, not {DEFAULT_KV}: its "
        f"{held.held} tokens are still held, {held.cold} of them encoded again"
    )
    assert (model.kv, model.window) == ("q8/q4", info.window)
    assert sum_layers(service.layer_stats()).total == held.total
    follow = Ask(messages=turns("ba ce di fo", last.completion.text, "gu"), max_tokens=3)
    _, again = read(service, follow)
    assert again.completion.reused_tokens >= held.total
    line, model = change(replace(wish, kv="q8/q4", ctx=48))
    assert model.window < 48
    window = f"the window is {model.window} tokens (whole blocks of 8), not {info.window}: "
    assert line.startswith(window)
    assert line.endswith("the oldest were let go")
    line, model = change(replace(wish, kv="f16", ctx=0, hot=16))
    assert "16 tokens stay unencoded, not 8" in line
    assert model.window > 100
    line, _ = change(replace(wish, kv="f16", ctx=0, hot=16, keep="20"))
    assert line.startswith("the first 20 tokens are never let go, not 4: its ")
    assert line.endswith("are read again with the next question")
    assert sum_layers(service.layer_stats()).total == 0
    _, once_more = read(service, follow)
    assert once_more.completion.text
    with pytest.raises(EmberError):
        list(service.change_cache(replace(wish, ctx=50, keep="90")))
    assert sum_layers(service.layer_stats()).sink == 20
    for beyond, said in (
        (replace(wish, ctx=9999), "9999 tokens, but the model was trained for"),
        (replace(wish, hot=9999), "got 9999 tokens that stay unencoded"),
    ):
        with pytest.raises(EmberError, match=said):
            list(service.change_cache(beyond))
    assert sum_layers(service.layer_stats()).sink == 20
    # Models that are loaded later have this cache too.
    info = list(service.load(str(tiny_path)))[-1]
    assert isinstance(info, ModelInfo)
    assert info.kv == "f16"
    service.close()


def test_the_codecs_of_layers_are_set_and_others_again(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_losses, "cache_folder", lambda: tmp_path)
    service = LiveService(CacheConfig(hot=8, block=8, backend=Backend.REFERENCE))
    info = list(service.load(str(tiny_path)))[-1]
    assert isinstance(info, ModelInfo)
    list(service.answer(Ask(messages=turns(WORDS), max_tokens=9)))
    held = sum_layers(service.layer_stats())
    wish = CacheWish(kv="5.5", ctx=0, hot=8, keep="0")
    with pytest.raises(EmberError, match="--by-layer` makes it"):
        list(service.change_cache(wish))
    losses = Losses(
        keys={name: (2.0**at, 3.0**at, 1.0) for at, name in enumerate(layer_losses.KEYS)},
        values={name: (1.0, 3.0**at, 2.0**at) for at, name in enumerate(layer_losses.VALUES)},
    )
    layer_losses.keep(losses, layer_losses.path_of(identity(tiny_path), plain=True))

    def kv_of(job: Job[LoadEvent]) -> str:
        model = list(job)[-1]
        assert isinstance(model, ModelInfo)
        return model.kv

    by_layer = kv_of(service.change_cache(wish))
    assert by_layer.endswith("bits, by layer")
    assert sum_layers(service.layer_stats()).total == held.total
    # Another setting and another model leave them.
    assert kv_of(service.change_cache(replace(wish, hot=16))) == by_layer
    assert kv_of(service.load(str(tiny_path))) == by_layer
    assert kv_of(service.change_cache(replace(wish, kv="q8/q4"))) == "q8/q4"
    assert kv_of(service.load(str(tiny_path))) == "q8/q4"
    service.close()


def test_a_cache_is_set_before_a_model_is_there(tiny_path: Path) -> None:
    service = LiveService(CacheConfig(backend=Backend.REFERENCE))
    wish = CacheWish(kv="q8", ctx=100, hot=8, keep="system")
    *progress, changed = service.change_cache(wish)
    assert all(isinstance(each, Progress) for each in progress)
    assert changed == CacheChanged(said=())
    info = list(service.load(str(tiny_path)))[-1]
    assert isinstance(info, ModelInfo)
    assert (info.kv, info.window <= 100) == ("q8", True)
    read(service, Ask(messages=turns("ba ce"), max_tokens=3))
    assert sum_layers(service.layer_stats()).sink >= 4
    service.close()


def test_names_that_must_be_fetched_are_known(service: LiveService) -> None:
    assert not service.is_here("smollm2-360m")
    assert not service.is_here("hf:a/b/c.gguf")
    assert service.is_here("./nowhere.gguf")


def test_an_answer_reuses_what_the_cache_holds(service: LiveService) -> None:
    events = list(service.answer(Ask(messages=turns(WORDS), max_tokens=5)))
    assert isinstance(events[0], Prepared)
    done = finished(events)
    assert done.completion.reused_tokens == 0
    stats = sum_layers(service.layer_stats())
    assert stats.total >= done.completion.prompt_tokens
    again = finished(list(service.answer(Ask(messages=turns(WORDS), max_tokens=5))))
    assert again.completion.reused_tokens == again.completion.prompt_tokens - 1
    assert again.completion.text == done.completion.text


def test_an_answer_is_not_computed_again_for_the_next_question(service: LiveService) -> None:
    said = turns(WORDS)
    first = finished(list(service.answer(Ask(messages=said, max_tokens=9)))).completion
    said = turns(WORDS, first.text, WORDS)
    second = finished(list(service.answer(Ask(messages=said, max_tokens=9)))).completion
    # The last token of an answer is in no cache.
    assert second.reused_tokens == first.prompt_tokens + 9 - 1


def test_a_look_at_the_speed_leaves_the_cache_alone(service: LiveService) -> None:
    list(service.answer(Ask(messages=turns(WORDS), max_tokens=5)))
    before = service.layer_stats()
    (found,) = list(service.measure())
    assert found.prompt_tokens == 64
    assert found.reused_tokens == 0
    assert found.prefill_tps > 0
    assert list(service.layer_stats()) == list(before)
    again = finished(list(service.answer(Ask(messages=turns(WORDS), max_tokens=5))))
    assert again.completion.reused_tokens == again.completion.prompt_tokens - 1


def finished(events: list[AnswerEvent]) -> Finished:
    last = events[-1]
    assert isinstance(last, Finished)
    return last


def test_a_stop_in_prefill_keeps_the_finished_part(tiny_path: Path) -> None:
    config = CacheConfig(max_tokens=20_000, beyond_context=True, backend=Backend.REFERENCE)
    service = LiveService(config)
    list(service.load(str(tiny_path)))
    ask = Ask(messages=turns(WORDS * 400), max_tokens=5)
    for event in service.answer(ask):
        if isinstance(event, PrefillProgress):
            service.cancel()
    held = sum_layers(service.layer_stats()).total
    completion = finished(list(service.answer(ask))).completion
    assert 32 <= held < completion.prompt_tokens
    assert completion.reused_tokens == held
    service.close()


def test_what_the_window_cannot_hold_is_told_not_cut(service: LiveService) -> None:
    events = list(service.answer(Ask(messages=turns(WORDS * 60))))
    (told,) = events
    assert isinstance(told, TooLong)
    assert told.prompt_tokens > told.window == 128
    ask = Ask(messages=turns(WORDS * 60), max_tokens=5, cuts=True)
    assert finished(list(service.answer(ask))).completion.tokens


def read(service: LiveService, ask: Ask) -> tuple[Prepared, Finished]:
    """The prompt that is made, and the answer."""
    prepared, *events = service.answer(ask)
    assert isinstance(prepared, Prepared)
    return prepared, finished(events)


def test_a_chat_longer_than_the_window_keeps_whole_newest_turns(tiny_path: Path) -> None:
    """As one that is opened again, of which no cache holds anything."""
    window = 400
    config = CacheConfig(max_tokens=window, beyond_context=True, backend=Backend.REFERENCE)
    service = LiveService(config)
    list(service.load(str(tiny_path)))
    long = (*[each for _ in range(19) for each in turns("ba ce", "di")], *turns("ba ce"))
    dropped = {}
    for room in (20, 150):
        prepared, last = read(service, Ask(messages=long, max_tokens=5, room=room))
        dropped[room] = prepared.dropped
        assert prepared.dropped % 2 == 0
        assert prepared.ends[: prepared.dropped] == (0,) * prepared.dropped
        assert prepared.prompt_tokens == prepared.ends[-1] <= window - room
    assert 0 < dropped[20] < dropped[150] < len(long) - 1
    more = (*long, *turns("ba", last.completion.text)[1:], *turns("di fo"))
    ask = Ask(messages=more, max_tokens=5, room=20, left_out=dropped[150])
    prepared, again = read(service, ask)
    # The chat goes on where it was: nothing that the cache holds is read anew.
    assert prepared.dropped == dropped[150]
    assert again.completion.reused_tokens >= last.completion.prompt_tokens
    read(service, Ask(messages=turns("other"), max_tokens=5))
    prepared, _ = read(service, ask)
    assert 0 < prepared.dropped < dropped[150]  # all is read anew: as much as fits
    service.close()


def test_a_question_that_is_too_long_alone_is_told_amid_a_chat_too(service: LiveService) -> None:
    ask = Ask(messages=turns(WORDS, WORDS, WORDS * 60))
    # And nothing before it: of the chat nothing is left out until the user has decided.
    (told,) = service.answer(ask)
    assert isinstance(told, TooLong)
    assert told.prompt_tokens > 128


@pytest.mark.parametrize("texts", [("ba ce",), (WORDS, WORDS, "di"), (*[WORDS] * 20, "fo")])
def test_what_is_weighed_is_what_is_read(service: LiveService, texts: tuple[str, ...]) -> None:
    ask = Ask(messages=turns(*texts), max_tokens=5, room=9)
    (weight,) = service.weigh(ask)
    prepared, last = read(service, ask)
    assert (weight.tokens, weight.dropped) == (prepared.prompt_tokens, prepared.dropped)
    assert weight.tokens - weight.new == last.completion.reused_tokens
    assert weight.fits
    assert weight.window == 128
    follow = Ask(messages=turns(*texts, last.completion.text, "gu"), max_tokens=5, room=9)
    follow = replace(follow, left_out=prepared.dropped)
    (weight,) = service.weigh(follow)
    _, last = read(service, follow)
    assert weight.tokens == last.completion.prompt_tokens
    assert weight.tokens - weight.new == last.completion.reused_tokens > 0


@pytest.mark.network
@on_screen
async def test_smollm2_answers_stops_and_is_resumed(smollm2_file: Path, tmp_path: Path) -> None:
    store = SessionStore.open(tmp_path / "chats.db")
    service = LiveService(CacheConfig(max_tokens=512))
    settings = Settings(max_tokens=40)
    app = ChatApp(service, model=str(smollm2_file), settings=settings, store=store)
    async with app.run_test(size=(120, 36)) as pilot:
        chat = Talk(app, service, pilot)
        await chat.until(lambda: app.chat.model is not None)
        await chat.type("What is the capital of France?")
        await chat.until(lambda: "Paris" in chat.shown and not app.chat.busy)
        held = sum_layers(service.layer_stats())
        assert held.total == held.sink + held.hot > 40
        await chat.press("ctrl+r")
        await chat.until(lambda: app.chat.last is not None and app.chat.last.reused_tokens == 36)
        await chat.type("Write a long story.")
        await chat.until(lambda: len(chat.texts) == 4 and len(chat.texts[3]) > 20)
        await chat.press("escape")
        await chat.until(lambda: not app.chat.busy)
        assert app.chat.last is not None
        assert app.chat.last.reused_tokens > 30
        texts = chat.texts
    store.close()
    again = SessionStore.open(tmp_path / "chats.db").latest()
    assert again is not None
    assert [message.text for message in again.messages] == texts
    app = ChatApp(service, model=str(smollm2_file), settings=settings, chat=again)
    async with app.run_test(size=(80, 24)) as pilot:
        chat = Talk(app, service, pilot)
        await chat.until(lambda: app.chat.model is not None)
        await chat.until(lambda: "capital of France" in chat.shown)
        await chat.type("And of Italy?")
        await chat.until(lambda: len(chat.texts) == 6 and not app.chat.busy)
        assert chat.texts[5]
    service.close()


def test_kernels_compile_beside_a_download(
    service: LiveService, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def compile_beside(found: list[Sources], stopped: Callable[[], bool]) -> None:
        done.append(f"compiling {len(found)}, stopped: {stopped()}")

    module = "app.service.live_service"
    monkeypatch.setattr(f"{module}.wanted", lambda config: [library.SOURCES])
    monkeypatch.setattr(f"{module}.compile_beside", compile_beside)
    monkeypatch.setattr(f"{module}.fetch", lambda spec, **_: done.append(f"fetching {spec}"))
    list(service.fetch("smollm2"))
    assert done == [
        "compiling 1, stopped: False",
        "fetching smollm2",
    ]
