import io
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest

from app import cli, layer_losses
from app.bench.engines.case import Case, EngineName
from app.bench.engines.ember_case import measure as measure_speed
from app.divergence import compare, join, read
from app.layer_losses import KEYS, VALUES, in_bits, kept, measure, path_of, with_kv
from app.options import LoadOptions
from app.session import load_admitted
from kvcache import CacheConfig, CacheError, EmberError, make_prompt_cache, resolve
from kvcache.allocation import Losses
from models import LoadedModel, load
from models.calibrate import TEXT

RUN = ["run", "--raw", "--prompt", "ba ce di", "--max-tokens", "90", "--json"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(layer_losses, "cache_folder", lambda: tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def loaded(tiny_path: Path) -> LoadedModel:
    return load(tiny_path)


@pytest.fixture(scope="module")
def steps() -> list[str]:
    return []


@pytest.fixture(scope="module")
def losses(loaded: LoadedModel, steps: list[str]) -> Losses:
    @contextmanager
    def step(label: str) -> Iterator[None]:
        steps.append(label)
        yield

    return measure(loaded, None, step)


@pytest.fixture
def table(loaded: LoadedModel, losses: Losses) -> Path:
    path = path_of(loaded.identity, plain=True)
    layer_losses.keep(losses, path)
    return path


def test_a_layer_loses_what_it_loses_alone(loaded: LoadedModel, losses: Losses) -> None:
    layers = loaded.model.shape.layers
    assert tuple(losses.keys) == KEYS
    assert tuple(losses.values) == VALUES
    ids = loaded.tokenizer.encode(TEXT.read_text(encoding="utf-8"))[: layer_losses.TOKENS]
    base = CacheConfig(keys="f16", values="f16", hot=128, max_tokens=2048, beyond_context=True)
    alone = replace(base, by_layer=("f16", "f16/trellis3", *["f16"] * (layers - 2)))
    readings = (
        read(
            loaded.model,
            make_prompt_cache(loaded.model, config),
            ids,
            chunk=64,
            skip=layer_losses.SKIP,
        )
        for config in (alone, base)
    )
    found = join([compare(*pair) for pair in zip(*readings, strict=True)])
    assert len(found.kl) == layer_losses.TOKENS - layer_losses.SKIP - 1
    assert losses.values["trellis3"][1] == pytest.approx(float(found.kl.mean()))
    assert losses.values["trellis3"][1] > 0
    # Finer ones lose a share of it, the same in every layer.
    shares = [
        fine / coarse
        for fine, coarse in zip(losses.values["trellis4"], losses.values["trellis3"], strict=True)
    ]
    assert shares == pytest.approx([shares[0]] * layers)
    assert shares[0] < 1


def test_it_is_told_how_far_it_is(loaded: LoadedModel, losses: Losses, steps: list[str]) -> None:
    assert losses
    assert len(steps) == layer_losses.readings(loaded.model.shape.layers)
    assert steps[0] == "the f16 reference"
    assert "hkivi2/f16, layers 1 to 1" in steps


def test_a_table_is_kept_and_what_is_none_is_told(loaded: LoadedModel, table: Path) -> None:
    layers, whole = loaded.model.shape.layers, table.read_text()
    found = kept(table, layers)
    assert found is not None
    assert kept(table, layers + 1) is None
    made = json.loads(whole)
    without = {name: value for name, value in made.items() if name != "form"}
    first = {**made["keys"], KEYS[0]: [1.0, math.nan, 2.0]}
    for damaged in (
        *("", "[]", "{}", "3", whole[:-40], "[" * 100_000),
        json.dumps(made | {"keys": {**made["keys"], KEYS[0]: [10**400] * layers}}),
        json.dumps(without),  # as it was before it told its form
        json.dumps(made | {"form": 1}),
        json.dumps(made | {"keys": {}}),
        json.dumps(made | {"keys": first}),
        json.dumps(made | {"values": {name: [["a"]] * layers for name in VALUES}}),
        json.dumps(made | {"values": 7}),
    ):
        table.write_text(damaged)
        assert kept(table, layers) is None, damaged


def test_a_folder_that_cannot_be_written_is_told(losses: Losses, tmp_path: Path) -> None:
    (tmp_path / "allocation").write_text("")
    with pytest.raises(EmberError, match="set EMBER_CACHE"):
        layer_losses.keep(losses, path_of("0" * 32, plain=False))


def test_kv_in_bits_takes_the_table_of_the_file(loaded: LoadedModel, table: Path) -> None:
    shape = loaded.model.shape
    coarse, fine = (
        in_bits(CacheConfig(), bits, loaded.path, shape).by_layer for bits in (3.1, 4.4)
    )
    assert len(coarse) == len(fine) == shape.layers
    assert coarse != fine
    bits = [resolve(CacheConfig(by_layer=each), shape).cold_bits for each in (coarse, fine)]
    assert 2.8 < bits[0] <= 3.1
    assert 4.0 < bits[1] <= 4.4
    assert with_kv(CacheConfig(), "3.1", loaded.path, shape).by_layer == coarse
    pair = with_kv(CacheConfig(), "h8/q4", loaded.path, shape)
    assert (pair.keys, pair.values, pair.by_layer) == ("h8", "q4", ())
    with pytest.raises(CacheError, match=r"got 1.5 bits, expected at least 2\.\d+"):
        in_bits(CacheConfig(), 1.5, loaded.path, shape)
    table.unlink()
    with pytest.raises(EmberError, match=r"`ember calibrate .*tiny.gguf --by-layer` makes it"):
        in_bits(CacheConfig(), 3.1, loaded.path, shape)


def test_keys_by_a_metric_have_a_table_of_their_own_which_goes_first(
    loaded: LoadedModel, losses: Losses, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the other, keys of every layer lose nothing in two bits."""
    free = {name: [0.0] * loaded.model.shape.layers for name in KEYS}
    layer_losses.keep(replace(losses, keys=free), path_of(loaded.identity, plain=False))
    monkeypatch.setenv("EMBER_CALIBRATE", "1")
    by_metric = in_bits(CacheConfig(), 4.0, loaded.path, loaded.model.shape).by_layer
    assert {pair.split("/")[0] for pair in by_metric} == {"hkivi2"}
    monkeypatch.setenv("EMBER_CALIBRATE", "0")
    plainly = in_bits(CacheConfig(), 4.0, loaded.path, loaded.model.shape).by_layer
    assert {pair.split("/")[0] for pair in plainly} != {"hkivi2"}
    assert table.exists()


def test_a_load_in_bits_fits_a_budget(loaded: LoadedModel, table: Path) -> None:
    config = CacheConfig(budget=60_000, hot=8, block=32, beyond_context=True)
    options = LoadOptions(bits=3.6)
    again, admitted = load_admitted(loaded.path, config, options)
    plan = resolve(admitted.config, again.model.shape)
    assert plan.max_bytes <= 60_000
    assert plan.cold_bits <= 3.6
    assert plan.max_tokens > resolve(config, again.model.shape).max_tokens
    assert table.exists()


def test_run_says_what_is_in_use(
    loaded: LoadedModel, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*RUN, "-m", str(loaded.path), "--hot", "8", "--block", "32", "--ctx", "100"]
    assert cli.run([*flags, "--kv", "3.6"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kv"].endswith(" bits, by layer")
    assert 3 <= float(found["kv"].split()[0]) <= 3.6
    assert found["cache"]["cold"] > 0
    table.unlink()
    assert cli.run([*flags, "--kv", "3.6"]) == 1
    assert "--by-layer` makes it" in capsys.readouterr().err
    for wrong, said in (("0.2", "got 0.2 bits, expected 1 to 16"), ("nan", "got nan bits")):
        assert cli.run([*flags, "--kv", wrong]) == 2
        assert said in capsys.readouterr().err


def test_a_chat_is_held_in_bits(
    loaded: LoadedModel,
    table: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ["chat", "--plain", "-m", str(loaded.path), "--kv", "3.6", "--max-tokens", "9"]
    for code, said in ((0, "hot"), (1, "--by-layer` makes it")):
        monkeypatch.setattr("sys.stdin", io.StringIO("ba ce\n/stats\n"))
        assert cli.run(flags) == code
        assert said in "".join(capsys.readouterr())
        table.unlink(missing_ok=True)


def test_perplexity_is_measured_against_f16(
    loaded: LoadedModel, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("ba ce di fo " * 60)
    flags = ["perplexity", str(text), "-m", str(loaded.path), "--tokens", "120", "--skip", "40"]
    flags += ["--hot", "8", "--block", "32", "--ctx", "120", "--json"]
    kls = []
    for kv in ("3.6", "5"):
        assert cli.run([*flags, "--kv", kv]) == 0
        kls.append(json.loads(capsys.readouterr().out)["kld_mean"])
    assert kls[0] > kls[1] > 0
    assert table.exists()


@pytest.mark.usefixtures("table")
def test_speed_is_measured_in_bits(loaded: LoadedModel) -> None:
    case = Case(
        engine=EngineName.EMBER,
        model=str(loaded.path),
        kv="3.1",
        backend="cpu",
        threads=1,
        depth=600,
        pp=8,
        tg=2,
    )
    fewer, usual = (measure_speed(each).kv_bytes for each in (case, replace(case, kv="h8")))
    assert 0 < fewer < usual


def test_calibrate_makes_the_table(
    loaded: LoadedModel,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("EMBER_CACHE", str(folder))
    monkeypatch.setenv("EMBER_CALIBRATE", "1")
    monkeypatch.setattr(layer_losses, "TOKENS", 270)
    assert cli.run(["calibrate", str(loaded.path), "--by-layer", "--json"]) == 0
    out, err = capsys.readouterr()
    told, whole = json.loads(out), layer_losses.readings(loaded.model.shape.layers)
    assert f"a text is read {whole} times, which takes some minutes" in err
    path = path_of(loaded.identity, plain=False)
    assert told["by_layer"] == str(path)
    assert kept(path, loaded.model.shape.layers) is not None
    assert mx.load(told["path"])
