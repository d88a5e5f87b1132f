"""What is kept of a chat, when it is found, and that it is then as if it had never been away."""

from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest

from app.engine import Engine
from app.wake.folder import PieceFolder
from app.wake.waking import LEAST_TOKENS, Waking
from kvcache import Backend, HotDtype
from models.gguf.tensor_types import TensorType
from models.loader import LoadedModel, load
from tests.app.wake.resting import WORDS, answer, engine_of, rest, wake
from tests.gguf_factory import LlamaShape, every_matrix, sentencepiece_tokenizer, write_llama
from tests.tiny_files import write_tiny

BACKENDS = (Backend.REFERENCE, Backend.CPU)
_SHAPE = LlamaShape(layers=3, width=96, ffn=160, heads=6, kv_heads=2, vocab=611, context=256)


@pytest.fixture(scope="module", params=BACKENDS, ids=lambda backend: backend.value)
def loaded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[LoadedModel, Backend]:
    """A tiny Llama of 256 tokens of context."""
    return _load(tmp_path_factory.mktemp("models") / "tiny.gguf", request.param, seed=5)


def _load(path: Path, backend: Backend, *, seed: int) -> tuple[LoadedModel, Backend]:
    write_llama(
        path,
        config=_SHAPE,
        types=every_matrix(TensorType.Q8_0),
        tokenizer_metadata=sentencepiece_tokenizer(_SHAPE.vocab),
        seed=seed,
    )
    return load(path, backend=backend), backend


def _told(engine: Engine, *lengths: int) -> list[int]:
    """Have an engine answer ever longer prompts; returns the conversation."""
    ids = list[int]()
    for length in lengths:
        ids = [*ids, *WORDS[len(ids) : length]]
        ids += answer(engine, ids).tokens
    return ids


@pytest.mark.parametrize(
    ("changes", "lengths"),
    [
        ({}, (70,)),
        ({}, (90, 133, 170)),
        ({"max_tokens": 80}, (70, 135, 200)),
        ({"max_tokens": 100, "keep": 29}, (75, 140, 203)),
        ({"sinks": 0, "hot": 0}, (90,)),
        ({"hot": 200}, (120,)),
        ({"keys": "kvarn4", "values": "turbo3u", "block": 32}, (110,)),
        ({"keys": "f16", "values": "f16", "hot_dtype": HotDtype.BF16}, (110,)),
        ({"keys": "q4", "values": "turbo4p", "hot_dtype": HotDtype.F16}, (110,)),
        ({"budget": 40_000}, (75, 140)),
        ({"by_layer": ("hkivi5/q6", "f16/turbo3", "q4/kvarn4")}, (90, 133)),
        ({"by_layer": ("hkivi2/trellis2", "f16/trellis4", "q8/turbo3p")}, (90, 133)),
    ],
)
def test_a_chat_goes_on_as_if_it_had_never_rested(
    loaded: tuple[LoadedModel, Backend],
    changes: dict[str, Any],
    lengths: Sequence[int],
    tmp_path: Path,
) -> None:
    live, woken = engine_of(*loaded, **changes), engine_of(*loaded, **changes)
    said = _told(live, *lengths)
    assert rest(live, tmp_path) == []
    prompt = [*said, 9, 8, 7]
    assert wake(woken, tmp_path, prompt) == len(live.held())
    assert woken.stats() == live.stats()
    expected, got = answer(live, prompt, 12), answer(woken, prompt, 12)
    assert (got.tokens, got.reused_tokens) == (expected.tokens, expected.reused_tokens)
    assert got.reused_tokens > len(prompt) - 9


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.value)
@pytest.mark.parametrize("codecs", [("f16/f16",), ("hkivi4/q4",), ("hkivi4/q4", "q8/h5")])
def test_layers_with_a_window_rest_too(
    backend: Backend, codecs: Sequence[str], tmp_path: Path
) -> None:
    loaded = load(write_tiny(tmp_path / "gemma3.gguf", "gemma3"), backend=backend)
    changes = {"by_layer": tuple(islice(cycle(codecs), loaded.model.shape.layers))}
    live, woken = engine_of(loaded, backend, **changes), engine_of(loaded, backend, **changes)
    assert len(set(live.plan.layer_sizes)) == 2
    prompt = [*_told(live, 110, 150), 9, 8]
    rest(live, tmp_path / "kept")
    assert wake(woken, tmp_path / "kept", prompt) == len(live.held())
    assert answer(woken, prompt, 12).tokens == answer(live, prompt, 12).tokens
    # Far back the windows lack tokens, and all is computed as if nothing were held.
    early = prompt[:80]
    assert wake(engine_of(loaded, backend, **changes), tmp_path / "kept", early) == 0


def test_what_one_backend_kept_another_takes(tmp_path: Path) -> None:
    reference, cpu = (_load(tmp_path / f"{each.value}.gguf", each, seed=5) for each in BACKENDS)
    live = engine_of(*cpu)
    prompt = [*_told(live, 120), 9]
    rest(live, tmp_path / "kept")
    woken = engine_of(*reference)
    assert wake(woken, tmp_path / "kept", prompt) == len(live.held())
    assert answer(woken, prompt).tokens == answer(live, prompt).tokens


@pytest.mark.parametrize(
    "changes",
    [
        {"keys": "hkivi4"},
        {"values": "q5"},
        {"hot": 17},
        {"sinks": 2},
        {"keep": 9},
        {"block": 16},
        {"max_tokens": 120},
        {"budget": 40_000},
        {"by_layer": ("hkivi5/q6", "hkivi5/q6", "hkivi5/q4")},
        {"hot_dtype": HotDtype.F16},
        {"temperature": 1.5},
        {"turn_sinks": False},
    ],
    ids=str,
)
def test_another_plan_finds_nothing(
    loaded: tuple[LoadedModel, Backend], changes: dict[str, Any], tmp_path: Path
) -> None:
    live = engine_of(*loaded)
    prompt = [*_told(live, 90), 9]
    rest(live, tmp_path)
    other, anew = engine_of(*loaded, **changes), engine_of(*loaded, **changes)
    assert wake(other, tmp_path, prompt) == 0
    expected, got = answer(anew, prompt), answer(other, prompt)
    assert (got.tokens, got.reused_tokens) == (expected.tokens, 0)


def test_another_model_finds_nothing(loaded: tuple[LoadedModel, Backend], tmp_path: Path) -> None:
    live = engine_of(*loaded)
    prompt = [*_told(live, 90), 9]
    rest(live, tmp_path / "kept")
    other = engine_of(*_load(tmp_path / "other.gguf", loaded[1], seed=6))
    assert wake(other, tmp_path / "kept", prompt) == 0
    same = engine_of(*_load(tmp_path / "copy.gguf", loaded[1], seed=5))
    assert wake(same, tmp_path / "kept", prompt) > 0


def test_what_was_rounded_plainly_is_not_taken_where_keys_have_a_metric(
    loaded: tuple[LoadedModel, Backend], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor the other way round; what was encoded in the same metric is."""
    plain, kept = engine_of(*loaded), tmp_path / "kept"
    prompt = [*_told(plain, 120), 9]
    rest(plain, kept)
    monkeypatch.setenv("EMBER_CACHE", str(tmp_path))
    monkeypatch.setenv("EMBER_CALIBRATE", "1")
    fed, again = engine_of(*loaded), engine_of(*loaded)
    assert wake(fed, kept, prompt) == 0
    answer(fed, prompt)
    rest(fed, kept)
    assert wake(again, kept, prompt) == len(prompt) - 1
    monkeypatch.setenv("EMBER_CALIBRATE", "0")
    assert wake(engine_of(*loaded), kept, prompt) == len(plain.held())


@pytest.mark.parametrize("shared", [85, 100, 119, 124])
def test_ids_that_differ_are_rewound_as_a_live_cache_does(
    loaded: tuple[LoadedModel, Backend], shared: int, tmp_path: Path
) -> None:
    live, woken = engine_of(*loaded), engine_of(*loaded)
    said = _told(live, 120)
    rest(live, tmp_path)
    prompt = [*said[:shared], 600, 9, 8]
    assert live.reusable(prompt) <= wake(woken, tmp_path, prompt) <= shared
    expected, got = answer(live, prompt, 12), answer(woken, prompt, 12)
    assert (got.tokens, got.reused_tokens) == (expected.tokens, expected.reused_tokens)


def test_a_beginning_is_found_in_any_chat(
    loaded: tuple[LoadedModel, Backend], tmp_path: Path
) -> None:
    """A system prompt of 130 tokens, in a chat that has long gone on, and let go of it."""
    first, second = (engine_of(*loaded, max_tokens=180) for _ in range(2))
    system = WORDS[:130]
    _told(first, 140)
    rest(first, tmp_path)
    _told(first, 140, 260)
    rest(first, tmp_path)
    assert first.stats().evicted
    prompt = [*system, *range(400, 440)]
    reached = wake(second, tmp_path, prompt)
    assert 130 - 8 < reached <= 130
    got = answer(second, prompt)
    assert got.reused_tokens == reached
    assert got.tokens == answer(engine_of(*loaded, max_tokens=180), prompt).tokens


def test_what_was_let_go_wakes_where_a_chat_goes_back(
    loaded: tuple[LoadedModel, Backend], tmp_path: Path
) -> None:
    """As far as --sleep allows; else it is computed."""
    live = engine_of(*loaded, max_tokens=120)
    said = _told(live, 110)
    rest(live, tmp_path)
    said = _told(live, 110, 210)
    rest(live, tmp_path)
    back = [*said[:100], 600, 9]
    assert live.stats().evicted > 91
    assert live.reusable(back) <= 3
    assert wake(live, tmp_path, back) == 3 + 11 * 8
    assert answer(live, back).reused_tokens == 3 + 11 * 8
    folder = PieceFolder(tmp_path, asleep=0)
    other = engine_of(*loaded, max_tokens=120)
    _told(other, 110, 210)
    waking = Waking(folder)
    list(waking.rest(other))
    waking.close(60)
    assert wake(engine_of(*loaded, max_tokens=120), tmp_path, back) == 0
    assert wake(engine_of(*loaded, max_tokens=120), tmp_path, [*said, 9]) == len(other.held())


def test_a_beginning_too_short_is_computed(
    loaded: tuple[LoadedModel, Backend], tmp_path: Path
) -> None:
    live = engine_of(*loaded)
    _told(live, LEAST_TOKENS - 9)
    rest(live, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_an_engine_holds_itself_is_not_read(
    loaded: tuple[LoadedModel, Backend], tmp_path: Path
) -> None:
    live = engine_of(*loaded)
    prompt = [*_told(live, 120), 9]
    rest(live, tmp_path)
    assert wake(live, tmp_path, prompt) == 0
    assert answer(live, prompt).reused_tokens == len(prompt) - 2


def test_only_what_is_new_is_written(loaded: tuple[LoadedModel, Backend], tmp_path: Path) -> None:
    live = engine_of(*loaded)
    said = _told(live, 120)
    rest(live, tmp_path)
    before = {path: path.stat().st_ino for path in tmp_path.iterdir()}
    answer(live, [*said, 9, 8])
    rest(live, tmp_path)
    after = {path: path.stat().st_ino for path in tmp_path.iterdir()}
    gone = before.keys() - after.keys()
    # The rest before is told by the one after.
    assert [path.name.split(".")[2] for path in gone] == ["rest"]
    assert all(after[path] == before[path] for path in before.keys() - gone)
    assert sum(path.name.split(".")[2] == "rest" for path in after) == 1
    rest(live, tmp_path)
    assert {path: path.stat().st_ino for path in tmp_path.iterdir()} == after


def test_size_on_disk_is_that_of_what_is_held(
    loaded: tuple[LoadedModel, Backend], tmp_path: Path
) -> None:
    live = engine_of(*loaded)
    _told(live, 220)
    rest(live, tmp_path)
    stats, ids = live.stats(), 4 * len(live.held())
    held = stats.sink_bytes + stats.cold_bytes + stats.hot_bytes
    files = list(tmp_path.iterdir())
    headers = 700 * len(files) + 60 * stats.cold // 8
    assert held <= sum(path.stat().st_size for path in files) <= held + ids + headers


@pytest.mark.parametrize("steps", [1, 3, 4, 5, 10, 35])
def test_a_rest_that_is_broken_off_leaves_what_is_whole(
    loaded: tuple[LoadedModel, Backend], steps: int, tmp_path: Path
) -> None:
    """And the next one goes on from there."""
    live, whole = engine_of(*loaded), tmp_path / "whole"
    prompt = [*_told(live, 100), 9]
    rest(live, whole)
    files = {path.name: path.read_bytes() for path in whole.iterdir()}
    waking = Waking(PieceFolder(tmp_path / "kept"))
    broken = waking.rest(live)
    for _ in range(steps):
        next(broken)
    broken.close()
    waking.close(60)
    found = {path.name: path.read_bytes() for path in (tmp_path / "kept").iterdir()}
    assert len(found) == (steps - 1) // 3
    assert found.items() <= files.items()
    rest(live, tmp_path / "kept")
    assert {path.name: path.read_bytes() for path in (tmp_path / "kept").iterdir()} == files
    assert wake(engine_of(*loaded), tmp_path / "kept", prompt) == len(live.held())


def test_the_bound_holds_and_the_chat_used_last_stays(
    loaded: tuple[LoadedModel, Backend], tmp_path: Path
) -> None:
    chats = [[300 + 3 * chat, *WORDS[chat : chat + 110]] for chat in range(5)]
    engine = engine_of(*loaded)
    answer(engine, chats[0])
    rest(engine, tmp_path)
    most = int(PieceFolder(tmp_path).nbytes * 2.4)
    for chat in (*chats[1:], chats[1]):
        wake(engine, tmp_path, chat)
        answer(engine, chat)
        rest(engine, tmp_path, most)
        assert PieceFolder(tmp_path).nbytes <= most
    found = [wake(engine_of(*loaded), tmp_path, [*chat, 5]) for chat in chats]
    assert [reached >= 110 for reached in found] == [False, True, False, False, True]
