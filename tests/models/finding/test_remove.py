from pathlib import Path

import pytest

from kvcache.errors import EmberError
from models.errors import ModelNotFoundError
from models.finding import catalogue
from models.finding.hub import hub_folder
from models.finding.remove import remove
from models.finding.store import models_folder
from tests.models.samples import CONTENT, ENTRY, put, put_hub, put_ollama


@pytest.fixture(autouse=True)
def _small_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "CATALOGUE", (ENTRY,))


def refused(spec: str, path: Path) -> str:
    with pytest.raises(EmberError) as caught:
        remove(spec)
    assert path.is_file()
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("by_path", [False, True])
def test_embers_own_file_goes(home: Path, by_path: bool) -> None:
    path = put(models_folder() / ENTRY.hub.file_name)
    assert remove(str(path) if by_path else "tiny") == len(CONTENT)
    assert not path.exists()


def test_embers_folder_may_be_a_link(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(home / "disk" / "models" / ENTRY.hub.file_name)
    (home / "link").symlink_to(home / "disk")
    monkeypatch.setenv("EMBER_CACHE", str(home / "link"))
    assert remove("tiny") == len(CONTENT)
    assert not path.exists()


def test_a_file_put_into_embers_folder_goes_by_its_found_name(home: Path) -> None:
    path = put(models_folder() / "sub" / "mine.gguf", CONTENT * 2)
    assert remove("ember:sub/mine.gguf") == 2 * len(CONTENT)
    assert not path.exists()


def test_what_is_not_here_cannot_be_removed(home: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="not on this machine"):
        remove("tiny")


def test_a_shared_hub_file_stays_even_if_the_catalogue_names_it(home: Path) -> None:
    message = refused("tiny", put_hub(hub_folder(), ENTRY.hub))
    assert "other programs share" in message
    assert "`hf cache rm hf://models/someone/Tiny-GGUF/tiny.Q4_1.gguf`" in message


def test_ollamas_file_stays(home: Path) -> None:
    blob = put_ollama(home / ".ollama/models", "registry.example/library/phi/mini")
    assert "`ollama rm phi:mini`" in refused("ollama:phi:mini", blob)


def test_lm_studios_file_stays(home: Path) -> None:
    path = put(home / ".lmstudio/models/m/r/a.gguf")
    assert "belongs to LM Studio" in refused("lmstudio:m/r/a.gguf", path)
    assert "belongs to LM Studio" in refused(str(path), path)


def test_a_users_own_file_stays(home: Path) -> None:
    path = put(home / "mine.gguf")
    assert str(models_folder()) in refused(str(path), path)


def test_a_link_in_embers_folder_goes_and_its_target_stays(home: Path) -> None:
    target = put(home / "mine.gguf")
    models_folder().mkdir(parents=True)
    link = models_folder() / "link.gguf"
    link.symlink_to(target)
    assert remove("ember:link.gguf") < len(CONTENT)
    assert not link.is_symlink()
    assert target.is_file()


def test_a_link_elsewhere_to_embers_file_stays(home: Path) -> None:
    target = put(models_folder() / "mine.gguf")
    link = home / "link.gguf"
    link.symlink_to(target)
    assert "name that instead" in refused(str(link), link)
