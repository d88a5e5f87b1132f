"""Answers with drafts against the same answers without, to the last bit of what caches hold."""

import random
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from app import prompt_lookup
from app.chat_tokens import ChatTokens
from app.engine import Engine, Request
from app.events import Completion, Drafts, Finished, FinishReason, TextChunk
from app.prompt_lookup import MOST_ROWS, PassCosts, PromptLookup
from app.sampling import Sampling
from kvcache import Backend, CacheConfig, CacheError
from models import load
from models.loader import LoadedModel
from models.text.messages import Message, Role
from models.text.thinking import Thinking, ThinkingMarks
from tests.app.answers import PROMPT, finish
from tests.app.conftest import TINY

SAMPLINGS = (
    Sampling(),
    Sampling(repeat_penalty=1.3),
    Sampling(temperature=0.9, seed=3),
    Sampling(temperature=1.4, top_p=0.9, top_k=40, min_p=0.01, repeat_penalty=1.1, seed=11),
)


class Scripted:
    """A network that mostly says a script, position by position, and else what it would say.

    Its logits come from what its caches hold, so that a cache that is off shows.
    """

    def __init__(self, inner: Any, script: Sequence[int], push: float) -> None:
        self._inner, self._script, self._push = inner, script, push
        self.passes: list[int] = []
        self.furthest = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __call__(self, ids: mx.array, caches: Sequence[Any]) -> mx.array:
        start = caches[0].offset
        self.passes.append(ids.shape[1])
        self.furthest = max(self.furthest, start + ids.shape[1])
        logits = np.array(self._inner(ids, caches))
        for row in range(ids.shape[1]):
            wanted = self._script[(start + row + 1) % len(self._script)]
            if wanted >= 0:
                logits[0, row, wanted] += self._push
        return mx.array(logits)


class Drafting(PromptLookup):
    """Drafts at random, right and wrong ones, as many as allowed."""

    def draft(self, most: int) -> list[int]:
        rng = random.Random(len(self._ids))
        span = len(self._ids) - self._place
        right = [self._ids[self._place + at % span] for at in range(MOST_ROWS - 1)]
        return [
            token if rng.random() < 0.8 else rng.randrange(TINY.vocab)
            for token in right[: rng.randint(0, max(0, min(most, MOST_ROWS - 1)))]
        ]


@pytest.fixture(scope="module")
def loaded(tiny_path: Path) -> LoadedModel:
    return load(tiny_path, backend=Backend.CPU)


@pytest.fixture(autouse=True)
def _no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PassCosts, "took", lambda *_: None)


def _engine(
    loaded: LoadedModel, script: Sequence[int], *, push: float = 30, **config: Any
) -> Engine:
    model: Any = Scripted(loaded.model, script, push)
    return Engine(replace(loaded, model=model), CacheConfig(backend=Backend.CPU, **config))


def _state(engine: Engine) -> list[bytes | str]:
    """All that the caches hold."""
    return [
        part if isinstance(part, str) else np.array(part).tobytes()
        for cache in engine._caches
        for part in cache.state
        if part is not None
    ]


def _passes(engine: Engine) -> list[int]:
    model: Any = engine.loaded.model
    return list(model.passes)


def _same(
    loaded: LoadedModel, script: Sequence[int], request: Request, **config: Any
) -> Completion:
    """The answer, which is the same with drafts and without, as is what is held after it."""
    with_drafts, without = (_engine(loaded, script, **config) for _ in range(2))
    got = finish(with_drafts.generate(request))
    want = finish(without.generate(replace(request, lookup=False)))
    for name in ("text", "tokens", "finish_reason", "thinking", "thinking_tokens", "said"):
        assert getattr(got, name) == getattr(want, name)
    assert _state(with_drafts) == _state(without)
    assert want.drafts == Drafts(tokens=len(want.tokens))
    passes = _passes(with_drafts)
    assert sum(passes) - len(passes) == got.drafts.tried
    return got


def _script(length: int, seed: int) -> list[int]:
    """Says the same again and again, here and there with a change, or what the network likes."""
    rng = random.Random(seed)
    told = [rng.randrange(259, TINY.vocab) for _ in range(length)]
    again = [told[at % length] for at in range(700)]
    return [
        -1
        if rng.random() < 0.05
        else rng.randrange(259, TINY.vocab)
        if rng.random() < 0.05
        else one
        for one in again
    ]


def _prompt(script: Sequence[int], length: int) -> list[int]:
    return [max(token, 259) for token in script[:length]]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_an_answer_that_repeats_its_prompt_takes_fewer_passes(
    loaded: LoadedModel, sampling: Sampling
) -> None:
    script = _script(23, 5)
    request = Request(prompt=_prompt(script, 57), max_tokens=60, sampling=sampling)
    got = _same(loaded, script, request, hot=64, block=32)
    assert got.drafts.accepted > 20
    assert got.drafts.tokens_per_step > 1.5


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("seed", range(6))
def test_blocks_that_leave_the_hot_ring_and_are_let_go_change_nothing(
    loaded: LoadedModel, sampling: Sampling, seed: int
) -> None:
    script = _script(13 + seed, seed)
    request = Request(prompt=_prompt(script, 40), max_tokens=130, sampling=sampling)
    got = _same(loaded, script, request, hot=9, block=32, max_tokens=100, sinks=3)
    assert got.drafts.accepted > 9


@given(
    hot=st.integers(0, 40),
    block=st.sampled_from([1, 5, 16, 32]),
    sinks=st.integers(0, 5),
    slots=st.integers(0, 4),
    kv=st.sampled_from([("f16", "f16"), ("hkivi4", "turbo4u"), ("q4", "h8")]),
    prompt=st.integers(1, 60),
    period=st.integers(1, 30),
    seed=st.integers(0, 999),
    most=st.integers(1, 60),
    sampling=st.sampled_from(SAMPLINGS),
)
@hypothesis_settings(max_examples=60)
def test_whatever_is_drafted_changes_nothing(
    loaded: LoadedModel,
    hot: int,
    block: int,
    sinks: int,
    slots: int,
    kv: tuple[str, str],
    prompt: int,
    period: int,
    seed: int,
    most: int,
    sampling: Sampling,
) -> None:
    script = _script(period, seed)
    request = Request(
        prompt=_prompt(script, prompt), max_tokens=most, sampling=sampling, truncate=True
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.engine.PromptLookup", Drafting)
        window = sinks + slots * block + hot + block - 1
        _same(
            loaded,
            script,
            request,
            hot=hot,
            block=block,
            sinks=sinks,
            max_tokens=min(max(window, sinks + block), TINY.context),
            keys=kv[0],
            values=kv[1],
        )


def test_a_stop_string_in_the_middle_of_a_draft_ends_the_answer_there(loaded: LoadedModel) -> None:
    script = _script(19, 2)
    request = Request(prompt=_prompt(script, 57), max_tokens=60)
    whole = _same(loaded, script, request)
    for start in range(0, len(whole.text) - 3, 5):
        stop = whole.text[start : start + 3]
        got = _same(loaded, script, replace(request, stop=(stop,)))
        assert got.finish_reason is FinishReason.STOP
        assert stop not in got.text


def test_an_end_of_generation_in_a_draft_ends_the_answer(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = _script(19, 2)
    request = Request(prompt=_prompt(script, 57), max_tokens=60)
    tokens = _same(loaded, script, request).tokens
    for at in range(4, 40, 3):
        monkeypatch.setattr(type(loaded.tokenizer), "eog_ids", frozenset({tokens[at]}))
        got = _same(loaded, script, request)
        assert got.tokens == tokens[: tokens.index(tokens[at]) + 1]


def test_no_row_is_computed_beyond_the_longest_answer(loaded: LoadedModel) -> None:
    script = [300 + at % 7 for at in range(700)]
    for most in range(2, 20):
        engine = _engine(loaded, script)
        got = finish(engine.generate(Request(prompt=_prompt(script, 30), max_tokens=most)))
        assert len(got.tokens) == most
        model: Any = engine.loaded.model
        # The last token is not given to the network.
        assert model.furthest == 30 + most - 1


def test_forced_ids_end_thinking_in_the_middle_of_a_draft(loaded: LoadedModel) -> None:
    script = [300 + at % 11 for at in range(700)]
    for budget in range(0, 25, 3):
        marks = ThinkingMarks(opens=("<a>",), closes=("</a>",), opening="<a>", closing="</a>")
        thinking = Thinking(marks=marks, begun="<a>", closing=(270, 271))
        request = Request(
            prompt=_prompt(script, 40), max_tokens=30, thinking=thinking, think_budget=budget
        )
        got = _same(loaded, script, request)
        assert got.tokens[budget : budget + 2] == (270, 271)


def test_a_cancel_is_heard_between_two_tokens_of_a_draft(loaded: LoadedModel) -> None:
    script = [300 + at % 7 for at in range(700)]
    for last in range(1, 20):
        engines = [_engine(loaded, script) for _ in range(2)]
        for engine, lookup in zip(engines, (True, False), strict=True):
            cancel = threading.Event()
            request = Request(prompt=_prompt(script, 30), max_tokens=60, lookup=lookup)
            for event in engine.generate(request, cancel):
                if isinstance(event, TextChunk) and event.tokens == last:
                    cancel.set()
            assert isinstance(event, Finished)
            assert len(event.completion.tokens) == last
        assert _state(engines[0]) == _state(engines[1])


def test_an_abandoned_answer_leaves_what_was_said_in_the_cache(loaded: LoadedModel) -> None:
    script = [300 + at % 7 for at in range(700)]
    for last in range(1, 20):
        engines = [_engine(loaded, script) for _ in range(2)]
        for engine, lookup in zip(engines, (True, False), strict=True):
            events = engine.generate(
                Request(prompt=_prompt(script, 30), max_tokens=60, lookup=lookup)
            )
            for event in events:
                if isinstance(event, TextChunk) and event.tokens == last:
                    break
            events.close()  # type: ignore[attr-defined]  # a generator
        assert _state(engines[0]) == _state(engines[1])


def test_the_next_answer_goes_on_from_a_draft(loaded: LoadedModel) -> None:
    """A chat's next prompt begins with the answer, and shares what the cache holds of it."""
    script = _script(17, 4)
    engines = [_engine(loaded, script, hot=20, block=32, max_tokens=96) for _ in range(2)]
    prompt = _prompt(script, 35)
    for _ in range(4):
        got, want = (
            finish(engine.generate(Request(prompt=prompt, max_tokens=21, lookup=lookup)))
            for engine, lookup in zip(engines, (True, False), strict=True)
        )
        assert got.tokens == want.tokens
        assert got.reused_tokens == want.reused_tokens
        prompt = [*prompt, *got.tokens, 280, 281]
    assert _state(engines[0]) == _state(engines[1])


def test_a_draft_that_a_layer_refuses_is_left_out(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = [300 + at % 7 for at in range(700)]
    request = Request(prompt=_prompt(script, 30), max_tokens=40)
    want = _same(loaded, script, request)
    engine = _engine(loaded, script)
    inner = Scripted.__call__

    def refusing(self: Scripted, ids: mx.array, caches: Sequence[Any]) -> mx.array:
        if ids.shape[1] > 3:
            inner(self, ids, caches[:])
            # As where a layer before the last refused: those before it have appended.
            for cache in caches[1:]:
                cache.rewind(ids.shape[1])
            raise CacheError("not finite")
        return inner(self, ids, caches)

    monkeypatch.setattr(Scripted, "__call__", refusing)
    got = finish(engine.generate(request))
    assert got.tokens == want.tokens
    assert max(_passes(engine)) > 3


def test_batches_and_plain_mlx_go_without(
    loaded: LoadedModel, tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(PromptLookup, "draft", never)
    engine = Engine(loaded, CacheConfig(backend=Backend.CPU))
    list(engine.generate_batch([Request(prompt=PROMPT, max_tokens=3)] * 2))
    reference = load(tiny_path, backend=Backend.REFERENCE)
    engine = Engine(reference, CacheConfig(backend=Backend.REFERENCE))
    list(engine.generate(Request(prompt=PROMPT, max_tokens=3)))


@pytest.mark.parametrize("measures", [True, False])
def test_on_a_gpu_the_next_token_is_queued_unless_a_draft_is_at_hand(
    loaded: LoadedModel, measures: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.engine.on_gpu", lambda: True)

    def lookup(_: Engine, prompt: Sequence[int]) -> PromptLookup:
        return PromptLookup(prompt, PassCosts(measures=measures))

    monkeypatch.setattr(Engine, "_lookup", lookup)
    script = _script(23, 5)
    for sampling in SAMPLINGS:
        engine = _engine(loaded, script, hot=64, block=32)
        request = Request(prompt=_prompt(script, 57), max_tokens=60, sampling=sampling)
        got = finish(engine.generate(request))
        # Without an answer's end in flight, which draws once more.
        without = _engine(loaded, script, hot=64, block=32)
        want = finish(without.generate(replace(request, lookup=False)))
        assert got.tokens == want.tokens
        assert got.drafts.accepted > 20


def _lookup(prompt: Sequence[int], *, more: float = 0.0) -> PromptLookup:
    """In which a row more takes `more` passes of one."""
    lookup = PromptLookup(prompt, PassCosts(measures=True))
    lookup.costs.ratios = [0.0, *(1 + more * row for row in range(MOST_ROWS))]
    return lookup


def test_what_drafts_may_lose_is_bounded() -> None:
    """Matches that never go on: each token was said before, and another follows it."""
    rng = random.Random(7)
    for more in (0.1, 0.3, 0.9):
        lookup = _lookup([rng.randrange(9) for _ in range(500)], more=more)
        spent, tokens = 0.0, 2000
        for _ in range(tokens):
            drafted = lookup.draft(MOST_ROWS)
            spent += lookup.costs.ratios[len(drafted) + 1]
            if drafted:
                lookup.costs.settle(len(drafted) + 1, 1)
            lookup.add(rng.choice([one for one in range(9) if one not in drafted[:1]]))
        assert spent <= 1.02 * tokens + 2


def test_lengths_follow_what_passes_take() -> None:
    def longest(more: float) -> int:
        lookup = _lookup([*range(40)] * 3, more=more)
        lookup.costs.credit = 4.0
        return len(lookup.draft(99))

    assert longest(0.05) == longest(0.2) == MOST_ROWS - 1
    assert longest(0.9) == longest(1.2) == 0


def test_a_first_draft_is_short_where_it_costs_much() -> None:
    lengths = [len(_lookup([*range(40)] * 3, more=more).draft(99)) for more in (0.1, 0.3, 0.5)]
    assert lengths == [7, 3, 2]


def test_costs_are_measured_and_a_disturbed_pass_says_little(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    costs = PassCosts(measures=True)
    for at in range(300):
        disturbed = 9 if at % 5 == 0 else 1
        costs.took(1, 0.004 * disturbed)
        costs.took(4, 0.008 * disturbed)
    assert costs.ratios[4] == pytest.approx(2.0, rel=0.2)
    costs.begin()
    # Nearer to the guess, should all have been disturbed.
    assert 1.9 < costs.ratios[4] < 2.3
    fixed = PassCosts(measures=False)
    before = list(fixed.ratios)
    fixed.took(4, 5.0)
    assert fixed.ratios == before


@pytest.mark.parametrize("length", [1, 2, 3, 29])
def test_a_text_that_repeats_itself_is_drafted_on(length: int) -> None:
    lookup = _lookup([*range(7)])
    said = [100 + at % length for at in range(4 * length + 30)]
    for token in said:
        lookup.add(token)
    assert lookup.draft(7) == [100 + (len(said) + at) % length for at in range(7)]


def test_a_copy_with_a_change_is_gone_on_with_behind_it() -> None:
    text = [*range(50, 100)]
    for changed in ([7], [7, 8], []):
        lookup = _lookup(text)
        for token in (*text[:20], *changed, text[21]):
            lookup.add(token)
        assert lookup.draft(5) == text[22:27]


def test_a_prompt_of_any_length_is_looked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_lookup, "_LOOKED_THROUGH", 32)
    for length in (1, 2, 3, 4, 31, 32, 33, 100):
        lookup = _lookup([*range(length)])
        assert lookup.draft(7) == []
        assert len(lookup._ids) == min(length, 32)
    for token in (95, 96, 97):
        lookup.add(token)
    assert lookup.draft(7)[:2] == [98, 99]


@pytest.mark.network
def test_the_default_model_says_the_same(
    smollm2_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over several prompts, past the hot ring, with the lengths that the clock gives."""
    monkeypatch.undo()
    loaded = load(smollm2_path, backend=Backend.CPU)
    prompts = (
        "Repeat this: The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
        "Write each name on a line: Anna Kowalska, Bertrand Lefevre, Chiyoko Tanaka.",
        "Why is the sky blue?",
    )
    accepted = 0
    for text in prompts:
        ids = ChatTokens(loaded).prompt([Message(role=Role.USER, content=text)]).ids
        config = CacheConfig(backend=Backend.CPU, hot=32, block=32, max_tokens=160)
        for sampling in (Sampling(), Sampling(temperature=0.8, top_p=0.9, seed=5)):
            request = Request(prompt=ids, max_tokens=110, sampling=sampling)
            engines = [Engine(loaded, config) for _ in range(2)]
            got, want = (
                finish(engine.generate(replace(request, lookup=lookup)))
                for engine, lookup in zip(engines, (True, False), strict=True)
            )
            assert got.tokens == want.tokens
            assert _state(engines[0]) == _state(engines[1])
            accepted += got.drafts.accepted
    # A busy machine's clock says shorter drafts, but some.
    assert accepted > 0
