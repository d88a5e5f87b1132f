from dataclasses import replace
from pathlib import Path

import pytest

from models.finding.catalogue import CATALOGUE, DEFAULT_NAME, entry
from models.finding.entry import CatalogueEntry, WheelFile
from models.gguf.file import GGUFFile
from models.network.architectures import ARCHITECTURES
from models.network.config import NetworkConfig
from tests.models.samples import ENTRY

# A small and a large file of each family, by what their names begin with.
FAMILIES = {
    "smollm": ("smollm2", "smollm3-3b"),
    "tinyllama, llama-2": ("tinyllama", "llama-2-7b"),
    "llama-3": ("llama-3.2-1b", "llama-3.3-70b"),
    "mistral": ("mistral-7b", "mistral-small-24b"),
    "ministral": ("ministral3-3b", "ministral3-14b"),
    "qwen2.5": ("qwen2.5-0.5b", "qwen2.5-14b"),
    "qwen3": ("qwen3-0.6b", "qwen3-14b"),
    "gemma3": ("gemma3-270m", "gemma3-27b"),
    "phi4": ("phi4-mini", "phi4"),
    "granite": ("granite3.3-2b", "granite3.3-8b"),
    "olmo2": ("olmo2-1b", "olmo2-13b"),
    "r1": ("r1-qwen-1.5b", "r1-qwen-14b"),
}


def test_names_are_unique_and_never_read_as_paths_or_prefixed_specs() -> None:
    names = [each.name for each in CATALOGUE]
    assert len({name.replace("-", "") for name in names}) == len(names)
    assert all(name == name.casefold() and not set(name) & set("/:@_ ") for name in names)
    assert not any(name.endswith(".gguf") for name in names)


def test_no_two_entries_stand_for_one_file() -> None:
    hashes = [each.sha256 for each in CATALOGUE if each.sha256 is not None]
    assert len(set(hashes)) == len(hashes)
    assert len({each.hub.file_name for each in CATALOGUE}) == len(CATALOGUE)


@pytest.mark.parametrize("each", CATALOGUE, ids=lambda each: each.name)
def test_entry_is_complete(each: CatalogueEntry) -> None:
    assert each.hub.file.endswith(".gguf")
    assert each.about
    assert each.licence
    assert each.size is None or each.size > 50_000_000
    assert each.quantization in ("Q4_1", "Q4_K_M", "Q8_0")
    # A size says which hash is meant, and a hash of what: they are told together.
    assert (each.size is None) == (each.sha256 is None)


@pytest.mark.parametrize("each", CATALOGUE, ids=lambda each: each.name)
def test_the_shape_is_one_that_a_model_has(each: CatalogueEntry) -> None:
    shape = each.shape
    assert shape.head_dim in (64, 128, 256)
    assert shape.context in {2**power for power in range(11, 19)} | {40960}
    assert (each.architecture == "gemma3") == bool(shape.windows)
    # Five of Gemma's layers see a window, the sixth sees all.
    if shape.windows:
        assert shape.windows[5] is None
        assert shape.windows.count(None) == shape.layers // 6
        assert len(shape.sights.keys() - {None}) == 1


def test_the_large_of_a_family_is_the_larger() -> None:
    by_name = {each.name: each for each in CATALOGUE}
    for small, large in FAMILIES.values():
        less, more = by_name[small], by_name[large]
        assert more.size is None or (less.size or 0) < more.size
        assert more.shape.layers >= less.shape.layers


def test_there_is_a_file_of_each_architecture_and_of_no_other() -> None:
    assert {each.architecture for each in CATALOGUE} == set(ARCHITECTURES)


def test_default_comes_in_a_wheel_that_holds_the_same_file() -> None:
    default = entry(DEFAULT_NAME)
    assert default is not None
    assert default.wheel is not None
    assert default.wheel.member.endswith(default.hub.file_name)


def test_entry_is_found_in_any_case_and_only_whole() -> None:
    assert entry("TinyLlama") is entry("tinyllama") is not None
    assert entry("tinyllam") is None


@pytest.mark.parametrize("name", ["llama3.2-3b", "Llama3.2:3b", "llama_3.2_3b", "LLAMA-3.2-3B"])
def test_entry_is_found_as_others_write_it(name: str) -> None:
    assert entry(name) is entry("llama-3.2-3b") is not None


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (98_362_432, "98 MB"),
        (999_400_000, "999 MB"),
        (4_081_004_224, "4.1 GB"),
        (None, "size unknown"),
    ],
)
def test_size_text(size: int | None, text: str) -> None:
    assert replace(ENTRY, size=size).size_text == text


@pytest.mark.parametrize("sha256", ["", "ab" * 31, "AB" * 32, "zz" * 32])
def test_bad_hash_is_refused(sha256: str) -> None:
    with pytest.raises(ValueError, match="64 hex digits"):
        replace(ENTRY, sha256=sha256)


def test_bad_size_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 0 bytes"):
        replace(ENTRY, size=0)


@pytest.mark.parametrize("unknown", ["size", "sha256"])
def test_what_a_wheel_carries_is_known(unknown: str) -> None:
    wheel = WheelFile(requirement="a==1", member="a/b", size=7)
    with pytest.raises(ValueError, match="expected its size and sha256"):
        replace(ENTRY, wheel=wheel, **{unknown: None})


@pytest.mark.network
def test_the_shape_is_that_of_the_file(smollm2_path: Path) -> None:
    default = entry(DEFAULT_NAME)
    assert default is not None
    with GGUFFile(smollm2_path) as file:
        assert NetworkConfig.from_metadata(file.metadata).shape == default.shape
