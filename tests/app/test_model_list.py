"""Which models this machine can hold, as `ls`, `pull` and the chat's list tell it."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from app import memory
from app.memory import LEAST_WINDOW, Memory, TooLargeError, admit
from app.model_list import Cost, Outlook, Room, cost_of, foretell, listed, outlook
from kvcache import Backend, CacheConfig, resolve
from kvcache.tiers.plan import ModelShape
from models import load
from models.errors import FetchError
from models.finding import catalogue
from models.finding.entry import CatalogueEntry
from models.finding.store import models_folder
from models.network.config import NetworkConfig
from tests.app.conftest import Ember
from tests.models.samples import ENTRY, put

GB = 10**9
# 128 kB a token, as Llama 3.1 8B: 4096 tokens are half a gigabyte in f16.
SHAPE = ModelShape(layers=32, kv_heads=8, head_dim=128, context=131072)
EIGHT = replace(
    ENTRY, name="eight", dimensions=asdict(SHAPE), size=4 * GB, about="eight", licence="MIT"
)
SMALL = replace(EIGHT, name="small", dimensions=asdict(SHAPE) | {"context": 4096}, size=GB)
HUGE = replace(EIGHT, name="huge", size=40 * GB, sha256="ab" * 32)
UNTOLD = replace(EIGHT, name="untold", size=None, sha256=None)

Offers = Callable[..., None]


@pytest.fixture
def offers(home: Path, monkeypatch: pytest.MonkeyPatch) -> Offers:
    """Sets what the catalogue offers, on a machine of so many gigabytes."""

    def offer(*entries: CatalogueEntry, most: int = 8) -> None:
        monkeypatch.setattr(catalogue, "CATALOGUE", entries)
        monkeypatch.setattr("app.model_list.CATALOGUE", entries)
        monkeypatch.setattr(memory, "memory", lambda: Memory(most=most * GB, now=most * GB))

    return offer


def _network(shape: ModelShape) -> NetworkConfig:
    more = {"layers": shape.layers, "kv_heads": shape.kv_heads, "head_dim": shape.head_dim}
    more |= {"context": shape.context, "heads": 32, "hidden": 4096, "ffn": 14336}
    return NetworkConfig(norm_eps=1e-5, rope_base=1e4, rope_dims=shape.head_dim, **more)


# -- costs --


@pytest.mark.parametrize("entry", catalogue.CATALOGUE, ids=lambda entry: entry.name)
def test_what_a_token_costs_is_told_by_the_dimensions(entry: CatalogueEntry) -> None:
    shape, cost = entry.shape, foretell(entry)
    windows = shape.windows or (None,) * shape.layers
    f16 = 2 * shape.kv_heads * shape.head_dim * 2
    assert cost.token_bytes == f16 * windows.count(None)
    # In f16 or in two tiers, whichever is smaller.
    assert cost.window_bytes <= f16 * sum(each or 0 for each in windows)
    assert bool(cost.window_bytes) == bool(shape.windows)
    # hkivi4/turbo4u: four bits and what goes with them, of sixteen.
    assert 3.5 < cost.token_bytes / cost.cold_bytes < 4


def test_gemma_takes_a_fraction_of_what_its_layers_suggest() -> None:
    by_name = {each.name: foretell(each) for each in catalogue.CATALOGUE}
    gemma, llama = by_name["gemma3-4b"], by_name["llama-3.2-3b"]
    assert gemma.token_bytes < llama.token_bytes / 5
    assert 0 < gemma.window_bytes < 29 * 1024 * 4096


def test_of_a_file_without_a_size_nothing_is_made_up() -> None:
    assert foretell(UNTOLD).weight_bytes is None
    assert foretell(UNTOLD).token_bytes == foretell(EIGHT).token_bytes


# -- what fits --


@pytest.mark.parametrize("most", [5, 6, 8, 12, 20, 40, 64])
@pytest.mark.parametrize("entry", [EIGHT, SMALL, HUGE], ids=lambda entry: entry.name)
def test_the_outlook_is_what_a_load_makes_of_it(
    most: int, entry: CatalogueEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Memory(most=most * GB, now=most * GB)
    monkeypatch.setattr(memory, "memory", lambda: here)
    cost = foretell(entry)
    found = outlook(cost, here)
    assert cost.weight_bytes is not None
    try:
        config = admit(CacheConfig(), _network(entry.shape), cost.weight_bytes).config
    except TooLargeError:
        assert found in (Outlook(room=Room.TOO_LARGE), Outlook(room=Room.SMALLER, window=4096))
        return
    whole = resolve(CacheConfig(), entry.shape).max_tokens
    window = config.max_tokens or whole
    assert found.window is not None
    # A load also knows what a step of a prompt takes, here some 3,500 tokens' worth.
    assert window <= found.window <= window + 8000
    assert (found.room is Room.FITS) == (found.window == whole)


def test_the_least_window_is_the_border() -> None:
    weights = 3 * GB
    least = CacheConfig(max_tokens=LEAST_WINDOW, backend=Backend.REFERENCE)
    plan = resolve(least, SHAPE)
    room = weights + memory.PROGRAM_BYTES + plan.max_bytes + plan.metric_bytes
    cost = Cost(weight_bytes=weights, shape=SHAPE)
    assert outlook(cost, Memory(most=room - 1, now=0)) == Outlook(room=Room.TOO_LARGE)
    found = outlook(cost, Memory(most=room, now=0))
    assert found.room is Room.SMALLER
    assert found.window is not None
    assert found.window >= LEAST_WINDOW - 64  # whole blocks


def test_what_is_not_known_is_in_no_group_of_memory() -> None:
    here = Memory(most=8 * GB, now=8 * GB)
    assert outlook(foretell(UNTOLD), here) == Outlook(room=Room.UNKNOWN)
    assert outlook(Cost(problem="no"), here) == Outlook(room=Room.CANNOT_RUN)


def test_a_file_that_is_here_is_looked_into(home: Path, tiny_path: Path) -> None:
    folder = models_folder()
    folder.mkdir(parents=True)
    (folder / "tiny.gguf").symlink_to(tiny_path)
    put(folder / "broken.gguf", b"GGUF")
    broken, tiny = [model for model in listed() if model.path is not None]
    assert cost_of(broken).problem
    assert outlook(cost_of(tiny), Memory(most=GB, now=GB)) == Outlook(room=Room.FITS, window=128)


# -- ls --


def test_ls_groups_by_what_the_machine_can_hold(
    ember: Ember, offers: Offers, tiny_path: Path
) -> None:
    offers(HUGE, EIGHT, UNTOLD, SMALL)
    put(models_folder() / "broken.gguf", b"GGUF")
    (models_folder() / "tiny.gguf").symlink_to(tiny_path)
    lines = ember("ls").out.splitlines()
    heads = [line for line in lines if not line.startswith(" ")]
    assert heads == [room.value for room in Room]
    cells = [re.split(r"  +", line.strip()) for line in lines]
    tiny = f"{tiny_path.stat().st_size / 1e9:.2f} GB"
    assert cells[1] == ["random weights · Q8_0", tiny, "128 tokens", "ember:tiny.gguf", "ember"]
    assert [cells[at][:2] for at in (2, 4, 6, 10)] == [
        ["eight · Q4_1", "1.00 GB"],
        ["eight · Q4_1", "4.00 GB"],
        ["eight · Q4_1", "40.00 GB"],
        ["Broken", "0.00 GB"],
    ]
    assert [cells[at][-2] for at in (2, 4, 6, 10)] == [
        "small",
        "eight",
        "huge",
        "ember:broken.gguf",
    ]
    assert lines[8].split() == ["eight", "·", "Q4_1", "untold", "to", "pull:", "eight"]
    assert re.search(r" 4,035 tokens  small +to pull: eight", lines[2])
    assert "tokens" not in lines[6]
    assert "  ember: " in lines[10]


def test_a_file_of_the_catalogue_has_its_title_there(tmp_path: Path, tiny_path: Path) -> None:
    path = tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf"
    path.symlink_to(tiny_path)
    assert load(path).title == "SmolLM2 135M Instruct · Q8_0"
    assert load(tiny_path).title == "random weights · Q8_0"


@pytest.mark.parametrize("how", [["--backend", "reference"], []])
def test_the_reference_holds_weights_as_floats(
    how: list[str],
    ember: Ember,
    offers: Offers,
    tiny_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is asked for, or nothing else can be compiled here."""
    offers(EIGHT, UNTOLD)
    models_folder().mkdir(parents=True)
    (models_folder() / "tiny.gguf").symlink_to(tiny_path)
    loaded = load(tiny_path, backend=Backend.REFERENCE)
    if not how:
        monkeypatch.setenv("CXX", "no-such-compiler")
    listing = json.loads(ember("ls", "--json", *how).out)
    (found,), (eight, untold) = listing["found"], listing["available"]
    assert found["weight_bytes"] == loaded.weight_bytes > 2 * loaded.file_bytes
    # 20 bytes for 32 weights of Q4_1.
    assert eight["weight_bytes"] == 4 * GB // 20 * 32 * 4
    assert eight["memory"] == "too large"
    assert untold["weight_bytes"] is None
    inspected = json.loads(ember("inspect", tiny_path, "--json", *how).out)["memory"]
    assert inspected["weight_bytes"] == loaded.weight_bytes
    assert inspected["weights_as"] == "floats"
    assert "MiB, as floats" in ember("inspect", tiny_path, *how).out


def test_ls_says_the_same_as_json(ember: Ember, offers: Offers, tiny_path: Path) -> None:
    offers(EIGHT, UNTOLD)
    models_folder().mkdir(parents=True)
    (models_folder() / "tiny.gguf").symlink_to(tiny_path)
    listing = json.loads(ember("ls", "--json").out)
    (found,), (eight, untold) = listing["found"], listing["available"]
    assert found["origin"] == "ember"
    assert found["path"] == str(models_folder() / "tiny.gguf")
    assert (found["memory"], found["window"]) == ("fits", 128)
    assert eight["memory"] == "fits with a smaller window"
    assert LEAST_WINDOW < eight["window"] < SHAPE.context
    assert eight["token_bytes_f16"] == 2 * 2 * 32 * 8 * 128
    assert eight["licence"] == "MIT"
    assert eight["from"] == "hf:someone/Tiny-GGUF/tiny.Q4_1.gguf"
    assert (untold["bytes"], untold["sha256"], untold["window"]) == (None, None, None)
    assert untold["memory"] == "size unknown"


# -- pull --


@pytest.mark.parametrize(
    ("entry", "most", "said"),
    [
        (EIGHT, 30, "it fits with its whole window of 131,011 tokens"),
        (EIGHT, 8, "it fits with a smaller window: "),
        (EIGHT, 4, "it is too large for this machine, which has 4.0 GB for it"),
        (UNTOLD, 8, "its size is not known"),
    ],
)
def test_pull_says_what_will_come_before_it_does(
    entry: CatalogueEntry,
    most: int,
    said: str,
    ember: Ember,
    offers: Offers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_arguments: object, **_named: object) -> Path:
        raise FetchError("nothing is fetched here")

    offers(entry, most=most)
    monkeypatch.setattr("models.finding.fetch.download", refuse)
    result = ember("pull", entry.name)
    first, second, third, last = result.err.splitlines()
    assert result.code == 1
    assert last == "ember: error: nothing is fetched here"
    assert first == f"ember: {entry.name}: {entry.size_text}, licence MIT. eight"
    assert second.startswith("ember: cache per 1k tokens: 125 MiB in f16, 33.")
    assert said in third


def test_pull_says_nothing_of_a_model_that_is_here(ember: Ember, offers: Offers) -> None:
    offers(ENTRY)
    path = put(models_folder() / ENTRY.hub.file_name)
    result = ember("pull", "tiny")
    assert (result.code, result.out, result.err) == (0, f"{path}\n", "")
