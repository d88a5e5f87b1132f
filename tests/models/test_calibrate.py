import os
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest

from kvcache import Backend, EmberError
from kvcache.key_metric import anywhere
from models import calibrate, load
from models.calibrate import count, count_queries, keep, kept, key_metric, path_of
from models.loader import LoadedModel
from tests.app.conftest import write_tiny
from tests.tiny_files import write_tiny as write_tiny_of


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    monkeypatch.setenv("EMBER_CACHE", str(tmp_path))
    monkeypatch.setenv("EMBER_CALIBRATE", "1")
    monkeypatch.setattr(calibrate, "TOKENS", 70)
    return load(write_tiny(tmp_path / "tiny.gguf"), backend=Backend.REFERENCE)


def test_the_first_load_counts_and_keeps_and_the_second_finds(loaded: LoadedModel) -> None:
    steps: list[tuple[int, int]] = []
    first = key_metric(loaded, progress=lambda *step: steps.append(step))
    assert first is not None
    assert steps == [(64, 70), (70, 70)]
    again = key_metric(loaded, progress=lambda *_: pytest.fail("counted again"))
    assert again is not None
    for one, other in zip(first.layers, again.layers, strict=True):
        assert mx.array_equal(one.moments(), other.moments())
    assert [path.name for path in path_of(loaded).parent.iterdir()] == [path_of(loaded).name]


def test_counting_twice_gives_the_same(loaded: LoadedModel) -> None:
    one, other = count(loaded), count(loaded)
    for layers in zip(one.layers, other.layers, strict=True):
        assert mx.array_equal(*(layer.moments() for layer in layers))


def test_what_is_damaged_is_made_anew(loaded: LoadedModel) -> None:
    keep(count(loaded), loaded)
    path_of(loaded).write_bytes(path_of(loaded).read_bytes()[:-9])
    assert kept(loaded) is None
    assert key_metric(loaded) is not None
    assert kept(loaded) is not None


def test_what_a_killed_program_left_goes_once_it_is_old(loaded: LoadedModel) -> None:
    young, old = (path_of(loaded).with_name(f"keeping-{age}") for age in ("young", "old"))
    for left in (young, old):
        left.mkdir(parents=True)
        (left / "half").touch()
    os.utime(old, (0, 0))
    keep(count(loaded), loaded)
    assert (young.exists(), old.exists()) == (True, False)


def test_large_models_wait_for_the_command(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "_FEW_BYTES", loaded.weight_bytes - 1)
    assert key_metric(loaded) is None
    keep(count(loaded), loaded)
    assert key_metric(loaded) is not None
    monkeypatch.setenv("EMBER_CALIBRATE", "0")
    assert key_metric(loaded) is None


def test_a_folder_that_cannot_be_written_costs_the_next_load_alone(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("EMBER_CACHE", str(blocked))
    with pytest.raises(EmberError, match="set EMBER_CACHE"):
        keep(count(loaded), loaded)
    assert key_metric(loaded) is not None


def test_moments_are_those_of_the_queries_of_each_head(loaded: LoadedModel) -> None:
    """Of the first layer, whose inputs need no attention."""
    ids = loaded.tokenizer.encode(calibrate.TEXT.read_text(encoding="utf-8"))[:70]
    layer, shape = loaded.model.layers[0], loaded.model.shape
    q = layer.attention_inputs(loaded.model.embed(mx.array([ids])), 0).q[0]
    rows = q.reshape(shape.kv_heads, -1, shape.head_dim)
    want = anywhere(rows.swapaxes(1, 2) @ rows / 70, loaded.model.rotations[0])
    got = count_queries(loaded.model, ids).layers[0].moments()
    assert mx.allclose(got, want, rtol=1e-3, atol=1e-3 * float(mx.abs(want).max()))


def test_the_text_is_long_enough_for_any_tokenizer() -> None:
    # Some seven letters a token at most.
    assert calibrate.TEXT.stat().st_size > 7 * calibrate.TOKENS


def test_queries_that_turn_otherwise_have_a_metric_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file with factors of rope for short and for long contexts."""
    monkeypatch.setenv("EMBER_CACHE", str(tmp_path))
    monkeypatch.setenv("EMBER_CALIBRATE", "1")
    monkeypatch.setattr(calibrate, "TOKENS", 70)
    path = tmp_path / "phi3.gguf"
    write_tiny_of(path, "phi3-long")
    loaded = load(path, backend=Backend.REFERENCE)
    short, whole = loaded.model.contexts
    found = {}
    for context in (short, whole, short - 1, short + 1):
        loaded.model.set_context(context)
        metric = key_metric(loaded)
        assert metric is not None
        found[context] = path_of(loaded), metric.total
    assert found[short] == found[short - 1]
    assert found[whole] == found[short + 1]
    assert found[short][0] != found[whole][0]
    assert found[short][1] != found[whole][1]
    assert len(list(path_of(loaded).parent.iterdir())) == 2


def test_a_file_with_one_rope_has_one_metric(loaded: LoadedModel) -> None:
    assert loaded.model.contexts == (loaded.model.shape.context,)
    whole = path_of(loaded)
    loaded.model.set_context(1)
    assert path_of(loaded) == whole
    assert whole.name == f"{loaded.identity}.safetensors"


def test_ranks_count_together_where_one_of_them_lacks_it(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = path_of(loaded)
    own = replace(loaded, group=mx.distributed.init())
    assert path_of(own).name == whole.stem + "-rank0of1.safetensors"
    assert key_metric(own) is not None
    assert not whole.exists()
    steps: list[int] = []
    key_metric(own, progress=lambda done, _: steps.append(done))
    assert steps == []
    # Another rank has none, and says so.
    monkeypatch.setattr(mx.distributed, "all_min", lambda own, group: own * mx.array([0, 1]))
    assert key_metric(own, progress=lambda done, _: steps.append(done)) is not None
    assert steps == [64, 70]
    # Another rank must not count.
    monkeypatch.setattr(mx.distributed, "all_min", lambda own, group: own * 0)
    assert key_metric(own) is None
