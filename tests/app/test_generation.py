import threading
from collections.abc import Callable
from dataclasses import replace

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest

from app import engine as engine_module
from app import generation
from app.divergence import read
from app.engine import PREFILL_STEP, Engine, Request
from app.events import Finished, FinishReason, PrefillProgress, TextChunk
from app.sampling import Sampling, require_finite
from kvcache import Backend, EmberError, make_prompt_cache
from models.network import cpu_llama
from tests.app.answers import CONFIG, PROMPT, finish, greedy


def test_pipelined_decoding_gives_the_same_tokens(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = finish(engine.generate(Request(prompt=PROMPT, max_tokens=9)))
    monkeypatch.setattr(engine_module, "on_gpu", lambda: True)
    again = Engine(engine.loaded, replace(CONFIG, backend=engine.plan.backend))
    assert finish(again.generate(Request(prompt=PROMPT, max_tokens=9))).tokens == want.tokens
    # The token in flight when the answer ended is in the cache and must be known.
    longer = (*PROMPT, *want.tokens, 270)
    follow = finish(again.generate(Request(prompt=longer, max_tokens=5)))
    assert list(follow.tokens) == greedy(engine, longer, 5)


def test_the_next_token_is_queued_before_one_is_waited_for(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    queue: Callable[..., None] = mx.async_eval

    def queued(*arrays: mx.array) -> None:
        calls.append("queue")
        queue(*arrays)

    def waited(peaks: npt.NDArray[np.floating]) -> None:
        """The first that asks what a token is."""
        calls.append("wait")
        require_finite(peaks)

    monkeypatch.setattr(mx, "async_eval", queued)
    monkeypatch.setattr("app.generation.require_finite", waited)
    monkeypatch.setattr(engine_module, "on_gpu", lambda: True)
    again = Engine(engine.loaded, replace(CONFIG, backend=engine.plan.backend))
    finish(again.generate(Request(prompt=PROMPT, max_tokens=4)))
    assert calls == ["queue", *["queue", "wait"] * 4]


def test_events_tell_progress_then_text(engine: Engine) -> None:
    events = list(engine.generate(Request(prompt=PROMPT, max_tokens=4)))
    prefill = [event for event in events if isinstance(event, PrefillProgress)]
    chunks = [event for event in events if isinstance(event, TextChunk)]
    assert [event.done for event in prefill] == [32, 41]
    assert {event.total for event in prefill} == {41}
    assert [chunk.tokens for chunk in chunks] == [1, 2, 3, 4]
    completion = finish(iter(events))
    assert "".join(chunk.text for chunk in chunks) == completion.text
    assert 3 / (chunks[-1].at - chunks[0].at) == pytest.approx(completion.decode_tps)


def test_cancel_in_prefill_keeps_what_was_computed(engine: Engine) -> None:
    cancel = threading.Event()
    events = engine.generate(Request(prompt=PROMPT, max_tokens=6), cancel)
    assert isinstance(next(events), PrefillProgress)
    cancel.set()
    completion = finish(events)
    assert (completion.finish_reason, completion.tokens) == (FinishReason.CANCELLED, ())
    again = finish(engine.generate(Request(prompt=PROMPT, max_tokens=6)))
    assert again.reused_tokens == 32
    assert list(again.tokens) == greedy(engine, PROMPT, 6)


class _Asked(threading.Event):
    """Set by being asked so many times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self._left = times

    def is_set(self) -> bool:
        self._left -= 1
        return self._left < 0


@pytest.mark.parametrize("engine", [Backend.CPU], indirect=True)
def test_cancel_amid_a_step_of_the_prompt_ends_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_llama, "_PATIENCE", 0.0)
    # Before each step, and after each of its layers but the last: three.
    events = engine.generate(Request(prompt=PROMPT, max_tokens=6), _Asked(5))
    assert isinstance(next(events), PrefillProgress)
    completion = finish(events)
    assert (completion.finish_reason, completion.tokens) == (FinishReason.CANCELLED, ())
    again = finish(engine.generate(Request(prompt=PROMPT, max_tokens=6)))
    assert again.reused_tokens == 32
    assert list(again.tokens) == greedy(engine, PROMPT, 6)


def test_cancel_in_decode_keeps_the_partial_answer(engine: Engine) -> None:
    cancel = threading.Event()
    shown = []
    for event in engine.generate(Request(prompt=PROMPT, max_tokens=50), cancel):
        if isinstance(event, TextChunk):
            shown.append(event.text)
            if event.tokens == 5:
                cancel.set()
    completion = finish(iter([event]))
    assert completion.finish_reason is FinishReason.CANCELLED
    assert len(completion.tokens) == 5
    assert completion.text == "".join(shown)


def test_an_abandoned_generation_leaves_a_usable_cache(engine: Engine) -> None:
    events = engine.generate(Request(prompt=PROMPT, max_tokens=50))
    for _ in range(5):
        next(events)
    del events
    completion = finish(engine.generate(Request(prompt=PROMPT[:30], max_tokens=5)))
    assert completion.reused_tokens == 29
    assert list(completion.tokens) == greedy(engine, PROMPT[:30], 5)


def test_end_of_generation_ends_the_answer(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    third = greedy(engine, PROMPT, 3)[2]
    monkeypatch.setattr(type(engine.loaded.tokenizer), "eog_ids", frozenset({third}))
    completion = finish(engine.generate(Request(prompt=PROMPT, max_tokens=50)))
    first = completion.tokens.index(third)
    assert completion.finish_reason is FinishReason.STOP
    assert len(completion.tokens) == first + 1
    assert completion.text == engine.loaded.tokenizer.decode(completion.tokens[:first])


def test_a_stop_string_ends_the_answer_before_it(engine: Engine) -> None:
    whole = finish(engine.generate(Request(prompt=PROMPT, max_tokens=12))).text
    stop = whole[5:8]
    request = Request(prompt=PROMPT, max_tokens=12, stop=(stop,))
    completion = finish(engine.generate(request))
    assert completion.finish_reason is FinishReason.STOP
    assert completion.text == whole[: whole.index(stop)]


def test_sampling_repeats_with_its_seed(engine: Engine) -> None:
    def draw(seed: int) -> tuple[int, ...]:
        sampling = Sampling(temperature=1.0, top_k=50, top_p=0.95, min_p=0.01, seed=seed)
        request = Request(prompt=PROMPT, max_tokens=12, sampling=sampling)
        return finish(engine.generate(request)).tokens

    assert draw(3) == draw(3)
    assert len({draw(seed) for seed in range(4)}) > 1


def test_batch_rows_answer_as_they_would_alone(engine: Engine) -> None:
    prompts = [PROMPT, PROMPT[5:9], PROMPT[:23], (300,)]
    limits = [4, 11, 7, 9]
    requests = [
        Request(prompt=prompt, max_tokens=limit)
        for prompt, limit in zip(prompts, limits, strict=True)
    ]
    done = {
        event.row: event.completion
        for event in engine.generate_batch(requests)
        if isinstance(event, Finished)
    }
    assert sorted(done) == [0, 1, 2, 3]
    for row, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
        assert list(done[row].tokens) == greedy(engine, prompt, limit)
        assert done[row].prompt_tokens == len(prompt)


def test_batch_cancel_ends_every_row(engine: Engine) -> None:
    cancel = threading.Event()
    completions = []
    for event in engine.generate_batch([Request(prompt=PROMPT)] * 3, cancel):
        if isinstance(event, TextChunk):
            cancel.set()
        if isinstance(event, Finished):
            completions.append(event.completion)
    assert [c.finish_reason for c in completions] == [FinishReason.CANCELLED] * 3
    assert [len(c.tokens) for c in completions] == [1, 1, 1]


def _spoil(engine: Engine, factor: float) -> None:
    """Make the network's last step overflow: its keys and values stay sound."""
    norm = engine.loaded.model.norm
    norm.weight = mx.array(np.full(norm.weight.shape, factor, np.float32))


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("factor", [float("nan"), 3e38])
def test_an_output_that_is_not_finite_ends_the_answer_with_its_cause(
    engine: Engine, factor: float, temperature: float
) -> None:
    _spoil(engine, factor)
    request = Request(prompt=PROMPT, sampling=Sampling(temperature=temperature, seed=3))
    with pytest.raises(EmberError, match="the network gave NaN or infinity"):
        list(engine.generate(request))
    with pytest.raises(EmberError, match="the network gave NaN or infinity"):
        list(engine.generate_batch([request, Request(prompt=PROMPT[:5])]))


def test_an_output_that_is_not_finite_is_noticed_in_the_middle_of_an_answer(
    engine: Engine,
) -> None:
    events = engine.generate(Request(prompt=PROMPT, max_tokens=9))
    for event in events:
        if isinstance(event, TextChunk):
            break
    _spoil(engine, float("nan"))
    with pytest.raises(EmberError, match="the network gave NaN or infinity"):
        list(events)


def test_a_reading_that_is_not_finite_is_refused(engine: Engine) -> None:
    _spoil(engine, float("nan"))
    model = engine.loaded.model
    with pytest.raises(EmberError, match="the network gave NaN or infinity"):
        list(read(model, make_prompt_cache(model, CONFIG), PROMPT, chunk=16))


def test_scratch_is_released_after_prompt_steps_and_now_and_then(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    released: list[int] = []
    monkeypatch.setattr(mx, "clear_cache", lambda: released.append(1))
    monkeypatch.setattr(generation, "_RELEASE_TOKENS", 4)
    fresh = Engine(engine.loaded, CONFIG)
    finish(fresh.generate(Request(prompt=PROMPT, max_tokens=10, lookup=False)))
    steps = -(-len(PROMPT) // PREFILL_STEP[fresh.plan.backend])
    assert len(released) == steps + 2
