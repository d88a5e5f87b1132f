import random
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest

from app import engine as engine_module
from app.engine import Engine, Request
from app.events import FinishReason, Truncated
from kvcache import Backend, CacheConfig, CacheError, EmberError, HotDtype
from kvcache.tiers.ledger import Ledger
from models.loader import load
from models.text.messages import Message, Role
from tests.app.answers import CONFIG, PROMPT, finish, greedy
from tests.tiny_files import prompt, write_tiny


def test_a_load_is_as_a_models(tiny_path: Path, tmp_path: Path) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text("{% for each in messages %}<{{ each.content }}>{% endfor %}")
    steps, accepted = [], []
    engine = Engine.load(
        tiny_path,
        CacheConfig(backend=Backend.REFERENCE),
        pretokenizer="gpt-2",
        chat_template=str(template),
        progress=lambda done, total: steps.append((done, total)),
        accept=lambda config, weights: accepted.append((config.shape, weights)),
    )
    assert engine.loaded.template.render([Message(role=Role.USER, content="ba")]) == "<ba>"
    assert steps[-1][0] == steps[-1][1] > 0
    assert accepted == [(engine.loaded.model.shape, engine.loaded.weight_bytes)]
    with pytest.raises(EmberError, match="got pre-tokenizer 'nosuch'"):
        Engine.load(tiny_path, pretokenizer="nosuch")


@pytest.mark.parametrize("on_metal", [True, False])
def test_weights_stay_in_the_memory_that_metal_recommends(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, on_metal: bool
) -> None:
    limits: list[int] = []
    monkeypatch.setattr(mx.metal, "is_available", lambda: on_metal)
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 7 << 30})
    monkeypatch.setattr(mx, "set_wired_limit", limits.append)
    Engine(engine.loaded, replace(CONFIG, backend=engine.plan.backend))
    assert limits == [7 << 30] * on_metal


def test_rope_is_that_of_the_window(tmp_path: Path) -> None:
    """Phi-3's factors are of two kinds, for windows up to 128 tokens in this file and beyond."""
    loaded = load(write_tiny(tmp_path / "phi3.gguf", "phi3-long"), backend=Backend.REFERENCE)

    def slowest(window: int) -> float:
        config = replace(CONFIG, backend=Backend.REFERENCE, hot=window, max_tokens=window)
        engine = Engine(loaded, config)
        assert engine.plan.max_tokens == window
        (rotation, *_) = engine.loaded.model.rotations
        assert rotation is not None
        return float(rotation.periods[-1])

    assert slowest(160) == pytest.approx(10 * slowest(128))


@pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.CPU])
def test_layers_with_a_window_answer_as_if_asked_anew(tmp_path: Path, backend: Backend) -> None:
    """Chats that go on, are taken back a little or far, and are cut short in a prompt."""
    loaded = load(write_tiny(tmp_path / "gemma3.gguf", "gemma3"), backend=backend)
    config = CacheConfig(backend=backend, keys="f16", values="f16", block=8, hot=16, sinks=3)
    config = replace(config, hot_dtype=HotDtype.F32)
    assert len({sizes.window for sizes in Engine(loaded, config).plan.layer_sizes}) == 2
    engine, ids = Engine(loaded, config), prompt(150)
    for length, reused in ((110, 0), (150, 110), (149, 149), (93, 0), (120, 93), (60, 0)):
        asked = Request(prompt=[*ids[:length], 7], max_tokens=4)
        got = finish(engine.generate(asked))
        assert got.reused_tokens == reused
        assert got.tokens == finish(Engine(loaded, config).generate(asked)).tokens
        assert len({stats.total for stats in engine.layer_stats()}) == 1


def test_generates_what_a_cacheless_loop_does(engine: Engine) -> None:
    completion = finish(engine.generate(Request(prompt=PROMPT, max_tokens=9)))
    assert list(completion.tokens) == greedy(engine, PROMPT, 9)
    assert completion.text == engine.loaded.tokenizer.decode(completion.tokens)
    assert completion.finish_reason is FinishReason.LENGTH
    assert (completion.prompt_tokens, completion.reused_tokens) == (41, 0)
    assert completion.ttft_s > 0
    assert completion.prefill_tps > 0
    assert completion.decode_tps > 0


def test_a_shared_prefix_is_not_computed_again(engine: Engine) -> None:
    first = finish(engine.generate(Request(prompt=PROMPT, max_tokens=6)))
    longer = (*PROMPT, *first.tokens[:3], 280, 281)
    second = finish(engine.generate(Request(prompt=longer, max_tokens=5)))
    assert second.reused_tokens == len(PROMPT) + 3
    assert list(second.tokens) == greedy(engine, longer, 5)
    # The same prompt again: all but its last token is reused.
    third = finish(engine.generate(Request(prompt=longer, max_tokens=5)))
    assert (third.reused_tokens, third.tokens) == (len(longer) - 1, second.tokens)


def test_a_step_that_one_layer_refused_leaves_a_usable_cache(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: mx.array, **__: object) -> None:
        raise CacheError("refused")

    longer = (*PROMPT, 270, 271, 272)
    finish(engine.generate(Request(prompt=PROMPT, max_tokens=3)))
    with monkeypatch.context() as patch:
        patch.setattr(engine._caches[-1], "attend", refuse)
        # The CPU kernels run all layers at once where they can.
        patch.setattr(engine._caches[-1], "lend", lambda steps: [])
        with pytest.raises(CacheError, match="refused"):
            list(engine.generate(Request(prompt=longer, max_tokens=4)))
    completion = finish(engine.generate(Request(prompt=longer, max_tokens=4)))
    assert completion.reused_tokens == len(PROMPT)
    assert list(completion.tokens) == greedy(engine, longer, 4)


def test_an_answer_goes_on_beyond_the_window(engine: Engine) -> None:
    config = replace(CONFIG, max_tokens=48, block=16, backend=engine.plan.backend)
    small = Engine(engine.loaded, config)
    completion = finish(small.generate(Request(prompt=PROMPT, max_tokens=70)))
    assert completion.finish_reason is FinishReason.LENGTH
    stats = small.stats()
    assert (stats.total, stats.sink) == (len(PROMPT) + 69, 4)
    assert stats.evicted > 0
    assert stats.held <= small.plan.max_tokens == 48
    assert stats.held_bytes <= stats.allocated_bytes <= small.plan.max_bytes


def test_a_chat_longer_than_the_window_goes_on(engine: Engine) -> None:
    config = replace(CONFIG, max_tokens=48, block=16, backend=engine.plan.backend)
    small = Engine(engine.loaded, config)
    ids = list(PROMPT)
    for turn in range(5):
        completion = finish(small.generate(Request(prompt=ids, max_tokens=9)))
        # The last token of an answer is not in the cache yet.
        assert completion.reused_tokens == (0 if turn == 0 else len(ids) - 8)
        ids = [*ids, *completion.tokens, 3, 4, 5, 6, 7, 8, 9]
    assert len(ids) > 2 * 48


def _held(engine: Engine) -> list[tuple[int, int]]:
    """Tokens seen and tokens let go, in each layer."""
    return [(stats.total, stats.evicted) for stats in engine.layer_stats()]


def _small(engine: Engine, window: int) -> Engine:
    config = replace(CONFIG, max_tokens=window, hot=8, block=8, backend=engine.plan.backend)
    return Engine(engine.loaded, replace(config, keys="f16", values="f16"))


# What is asked after PROMPT (41 tokens of a window of 55) got an answer of 60: how many of
# PROMPT's tokens stay, and what follows them.
AGAIN = {
    "retry": (41, ()),
    "edit": (38, (270, 271, 272, 273, 274)),
    "undo": (30, ()),
    "undo and ask": (30, (280, 281)),
    "fork": (35, (290,) * 15),
}


@pytest.mark.parametrize("back", AGAIN.values(), ids=AGAIN)
def test_what_an_answer_pushed_out_is_seen_again_once_it_is_taken_back(
    engine: Engine, back: tuple[int, tuple[int, ...]]
) -> None:
    again = (*PROMPT[: back[0]], *back[1])
    small, fresh = _small(engine, 55), _small(engine, 55)
    answer = finish(small.generate(Request(prompt=PROMPT, max_tokens=60)))
    assert small.stats().evicted > 40
    got = finish(small.generate(Request(prompt=again, max_tokens=6)))
    want = finish(fresh.generate(Request(prompt=again, max_tokens=6)))
    assert (got.tokens, _held(small)) == (want.tokens, _held(fresh))
    # Sinks are never let go; whatever else is held cannot be joined to what is not.
    assert got.reused_tokens == 4
    # To go on with the first answer: part of it is still to be let go.
    longer = (*PROMPT, *answer.tokens[:20])
    going_on = Request(prompt=longer, max_tokens=6, continues=True)
    finish(small.generate(Request(prompt=PROMPT, max_tokens=60)))
    finish(small.generate(going_on))
    alone = _small(engine, 55)
    for at in range(41, 62, 7):
        finish(alone.generate(Request(prompt=longer[:at], max_tokens=1)))
    finish(alone.generate(going_on))
    assert _held(small) == _held(alone)


def test_what_is_still_held_is_not_computed_again(engine: Engine) -> None:
    small = _small(engine, 55)
    finish(small.generate(Request(prompt=PROMPT, max_tokens=9)))
    assert (small.stats().evicted, small.stats().cold) == (0, 32)
    for asked, reused in ((PROMPT, 40), (PROMPT[:36], 28)):
        # Exactly, among hot tokens; else to the beginning of a cold block.
        assert finish(small.generate(Request(prompt=asked, max_tokens=9))).reused_tokens == reused


def test_a_window_that_lets_all_go_at_once_still_has_a_token_to_compute(engine: Engine) -> None:
    """A prompt that ends where a block of tokens, which is all but the sinks, is let go."""
    config = replace(CONFIG, max_tokens=39, hot=0, block=35, backend=engine.plan.backend)
    small = Engine(engine.loaded, config)
    finish(small.generate(Request(prompt=PROMPT[:20], max_tokens=40)))
    again = finish(small.generate(Request(prompt=(*PROMPT[:19], *range(280, 300)), max_tokens=1)))
    assert len(again.tokens) == 1
    assert _held(small) == [(39, 35)] * 3


def test_a_retry_beyond_the_window_computes_no_more_than_the_window(engine: Engine) -> None:
    small = _small(engine, 55)
    ids: list[int] = list(PROMPT)
    for turn in range(6):
        completion = finish(small.generate(Request(prompt=ids, max_tokens=25)))
        computed = len(ids) - completion.reused_tokens
        # A chat that only goes on computes what is new to it.
        assert computed == (41 if turn == 0 else 8)
        ids = [*ids, *completion.tokens, 3, 4, 5, 6, 7, 8, 9]
    fed = Ledger(sizes=small.plan.sizes)
    for asked in (ids[:-7], ids[:-30], ids[:-70]):
        assert len(asked) > 55
        completion = finish(small.generate(Request(prompt=asked, max_tokens=1)))
        assert _held(small) == [(len(asked), fed.appended(len(asked)).evicted)] * 3
        assert len(asked) - completion.reused_tokens <= 55 - 4
    # A retry of an answer as long as the window.
    finish(small.generate(Request(prompt=asked, max_tokens=100)))
    again = finish(small.generate(Request(prompt=asked, max_tokens=1)))
    assert _held(small) == [(len(asked), fed.appended(len(asked)).evicted)] * 3
    assert len(asked) - again.reused_tokens <= 55 - 4


@pytest.mark.parametrize("sinks", [0, 5])
def test_every_turn_of_a_chat_holds_what_a_cache_fed_anew_holds(engine: Engine, sinks: int) -> None:
    config = replace(CONFIG, max_tokens=61, hot=7, block=6, sinks=sinks)
    small = Engine(engine.loaded, replace(config, backend=engine.plan.backend))
    rng = random.Random(7)
    ids: list[int] = list(PROMPT)
    for _ in range(10):
        answer = finish(small.generate(Request(prompt=ids, max_tokens=rng.randint(1, 30))))
        ids += answer.tokens
        if rng.random() < 0.6:
            del ids[-min(rng.randint(1, 60), len(ids) - 1) :]
        ids += [rng.randint(260, 600) for _ in range(rng.randint(1, 12))]
        done = finish(small.generate(Request(prompt=ids, max_tokens=1, truncate=True)))
        fed = Ledger(sizes=small.plan.sizes).appended(done.prompt_tokens)
        for stats in small.layer_stats():
            assert (stats.total, stats.evicted <= fed.evicted) == (done.prompt_tokens, True)
        ids = ids[-done.prompt_tokens :]


def test_a_prompt_beyond_the_window_is_refused_or_cut(engine: Engine) -> None:
    config = replace(CONFIG, max_tokens=40, block=16, backend=engine.plan.backend)
    small = Engine(engine.loaded, config)
    with pytest.raises(EmberError, match="the prompt has 41 tokens, but the window holds 40"):
        list(small.generate(Request(prompt=PROMPT)))
    request = Request(prompt=PROMPT, max_tokens=7, truncate=True)
    events = list(small.generate(request))
    assert events[0] == Truncated(kept=33, dropped=8)
    assert list(finish(iter(events)).tokens) == greedy(engine, PROMPT[8:], 7)


@pytest.mark.parametrize("bad", [{"prompt": ()}, {"prompt": (1,), "max_tokens": 0}])
def test_impossible_requests_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(EmberError, match=r"the prompt is empty|max_tokens=0"):
        Request(**bad)


def test_every_backend_has_its_prefill_step() -> None:
    assert set(engine_module.PREFILL_STEP) == set(Backend) - {Backend.AUTO}
