from dataclasses import replace
from pathlib import Path

import pytest

from models.finding.catalogue import CATALOGUE, DEFAULT_NAME, CatalogueEntry, entry
from models.gguf.file import GGUFFile
from models.network.config import NetworkConfig
from tests.models.samples import ENTRY


def test_names_are_unique_and_never_read_as_paths_or_prefixed_specs() -> None:
    names = [each.name for each in CATALOGUE]
    assert len(set(names)) == len(names)
    assert all(name == name.casefold() and not set(name) & set("/:@ ") for name in names)
    assert not any(name.endswith(".gguf") for name in names)


def test_no_two_entries_stand_for_one_file() -> None:
    assert len({each.sha256 for each in CATALOGUE}) == len(CATALOGUE)
    assert len({each.hub.file_name for each in CATALOGUE}) == len(CATALOGUE)


@pytest.mark.parametrize("each", CATALOGUE, ids=lambda each: each.name)
def test_entry_is_complete(each: CatalogueEntry) -> None:
    assert each.hub.file.endswith(".gguf")
    assert each.about
    assert each.licence
    assert each.size > 50_000_000
    assert each.quantization in ("Q4_1", "Q4_K_M")


def test_default_comes_in_a_wheel_that_holds_the_same_file() -> None:
    default = entry(DEFAULT_NAME)
    assert default is not None
    assert default.wheel is not None
    assert default.wheel.member.endswith(default.hub.file_name)


def test_entry_is_found_in_any_case_and_only_whole() -> None:
    assert entry("TinyLlama") is entry("tinyllama") is not None
    assert entry("tinyllam") is None


@pytest.mark.parametrize(
    ("size", "text"), [(98_362_432, "98 MB"), (999_400_000, "999 MB"), (4_081_004_224, "4.1 GB")]
)
def test_size_text(size: int, text: str) -> None:
    assert replace(ENTRY, size=size).size_text == text


@pytest.mark.parametrize("sha256", ["", "ab" * 31, "AB" * 32, "zz" * 32])
def test_bad_hash_is_refused(sha256: str) -> None:
    with pytest.raises(ValueError, match="64 hex digits"):
        replace(ENTRY, sha256=sha256)


def test_bad_size_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 0 bytes"):
        replace(ENTRY, size=0)


@pytest.mark.network
def test_the_shape_is_that_of_the_file(smollm2_path: Path) -> None:
    default = entry(DEFAULT_NAME)
    assert default is not None
    with GGUFFile(smollm2_path) as file:
        assert NetworkConfig.from_metadata(file.metadata).shape == default.shape
