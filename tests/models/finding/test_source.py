import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import ModelNotFoundError
from models.finding import catalogue
from models.finding.hub import HubFile, hub_folder
from models.finding.source import FoundName, locate, parse
from models.finding.store import models_folder
from tests.models.samples import COMMIT, CONTENT, ENTRY, put, put_hub, put_ollama

WHOLE = catalogue.CATALOGUE


@pytest.fixture(autouse=True)
def _small_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "CATALOGUE", (ENTRY, replace(ENTRY, name="tinier")))


def refused(spec: str) -> str:
    with pytest.raises(ModelNotFoundError) as caught:
        locate(spec)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("spec", "source"),
    [
        ("tiny", ENTRY),
        ("TINY", ENTRY),
        ("model.gguf", Path("model.gguf")),
        ("MODEL.GGUF", Path("MODEL.GGUF")),
        ("./tiny", Path("tiny")),
        ("/a/b", Path("/a/b")),
        ("hf:o/r/f.gguf", HubFile(repo="o/r", file="f.gguf")),
        ("hf:o/r/d/f.gguf", HubFile(repo="o/r", file="d/f.gguf")),
        ("hf:o/r/f.gguf@refs/pr/1", HubFile(repo="o/r", file="f.gguf", revision="refs/pr/1")),
        ("ollama:llama3.2:1b", FoundName(name="ollama:llama3.2:1b")),
        ("lmstudio:o/r/f.gguf", FoundName(name="lmstudio:o/r/f.gguf")),
        ("ember:f.gguf", FoundName(name="ember:f.gguf")),
    ],
)
def test_parse(home: Path, spec: str, source: object) -> None:
    assert parse(spec) == source


def test_home_folder_is_expanded(home: Path) -> None:
    path = put(home / "m.gguf")
    assert locate("~/m.gguf") == path
    assert "no such user" in refused("~nobody-of-that-name/m.gguf")


@pytest.mark.parametrize(
    "spec",
    [
        *(
            "hf:",
            "hf:o",
            "hf:o/r:",
            "hf:o/r:a b",
            "hf:o/r@",
            "hf:o/r/",
            "hf:o/r/f.bin",
            "hf:/r/f.gguf",
            "hf:o//f.gguf",
        ),
        *("hf:o/../f.gguf", "hf:o/r/../f.gguf", "hf:o/r/f.gguf@", "hf:o/r/f.gguf@../x"),
        *("hf:o/r/a\\b.gguf", "hf:o/r/..\\b.gguf", "hf:o/r/a\0b.gguf", "hf:o/r/\udc80.gguf"),
        *(f"hf:o/r/{'x' * 5000}.gguf", "hf:o/r/f.gguf@a\\b", "hf:o/r/a\nb.gguf"),
    ],
)
def test_malformed_hub_specs_show_the_form(home: Path, spec: str) -> None:
    assert "expected hf:OWNER/REPO, " in refused(spec)


names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)


@given(owner=names, repo=names, file=names, revision=names)
def test_hub_specs_are_read_back(owner: str, repo: str, file: str, revision: str) -> None:
    wanted = HubFile(repo=f"{owner}/{repo}", file=f"{file}.gguf", revision=revision)
    assert parse(str(wanted)) == wanted


@given(spec=st.text(max_size=30))
def test_any_text_names_a_file_or_is_refused(spec: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("models.finding.source.discover", list)
        with suppress(ModelNotFoundError):
            assert locate(spec).is_file()


def test_catalogue_name_stands_for_its_file(home: Path) -> None:
    message = refused("tiny")
    assert "`ember pull tiny`" in message
    assert ENTRY.size_text in message
    own = put(models_folder() / ENTRY.hub.file_name)
    assert locate("tiny") == own


def test_hub_file_is_taken_from_the_cache_at_its_revision(home: Path) -> None:
    assert "`ember pull hf:someone/Tiny-GGUF/tiny.Q4_1.gguf`" in refused(str(ENTRY.hub))
    path = put_hub(hub_folder(), ENTRY.hub)
    assert locate(str(ENTRY.hub)) == path
    assert locate(f"{ENTRY.hub}@{COMMIT}") == path
    assert "ember pull" in refused(f"{ENTRY.hub}@other")


def test_found_names_lead_to_their_files(home: Path) -> None:
    blob = put_ollama(home / ".ollama/models", "registry.example/library/phi/latest")
    assert locate("ollama:phi:latest") == locate("ollama:phi") == blob
    assert "did you mean ollama:phi:latest?" in refused("ollama:phy:latest")


def test_close_names_are_offered(home: Path) -> None:
    put_ollama(home / ".ollama/models", "registry.example/library/llama3.2/1b")
    assert "did you mean tiny or tinier?" in refused("Tiniy")
    assert "did you mean ollama:llama3.2:1b?" in refused("llama3.2:1b")
    far = refused("quite-another")
    assert "did you mean" not in far
    assert "`ember ls`" in far


@pytest.mark.parametrize(
    ("spec", "offered"),
    [
        ("llama3", "llama-3.2-1b or llama-3.2-3b or llama-3.1-8b"),
        ("llama3.1", "llama-3.1-8b or llama-3.2-1b or llama-3.2-3b"),
        ("Phi", "phi4 or phi4-mini"),
        ("deepseek-r1:7b", "r1-llama-8b or r1-qwen-14b or r1-qwen-1.5b"),
    ],
)
def test_names_of_families_are_known(
    home: Path, monkeypatch: pytest.MonkeyPatch, spec: str, offered: str
) -> None:
    monkeypatch.setattr(catalogue, "CATALOGUE", WHOLE)
    assert f"did you mean {offered}?" in refused(spec)


def test_names_of_other_programs_are_compared_with_theirs(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "CATALOGUE", WHOLE)
    assert "did you mean" not in refused("ollama:x")
    put_ollama(home / ".ollama/models", "registry.example/library/phi/latest")
    assert "did you mean ollama:phi:latest?" in refused("ollama:x")


@pytest.mark.parametrize("spec", ["", "  "])
def test_empty_spec_is_refused(home: Path, spec: str) -> None:
    assert "no model named" in refused(spec)


def test_a_folder_is_no_model(home: Path) -> None:
    (home / "empty").mkdir()
    put(home / "full" / "b.gguf")
    put(home / "full" / "a.gguf")
    assert "holds no .gguf file" in refused(str(home / "empty"))
    assert "such as a.gguf, b.gguf" in refused(str(home / "full"))


def test_a_device_or_a_pipe_is_no_model(home: Path) -> None:
    os.mkfifo(home / "pipe.gguf")
    for path in (home / "pipe.gguf", Path(os.devnull)):
        assert f"{path} is a device or a pipe, expected a .gguf file" in refused(str(path))


def test_a_missing_path_offers_its_neighbour(home: Path) -> None:
    path = put(home / "model-q4.gguf")
    assert f"did you mean {path}?" in refused(str(home / "model-q5.gguf"))
    assert "no such file" in refused(str(home / "nowhere" / "model.gguf"))
    assert "cannot be read" in refused(f"{'x' * 300}.gguf")


def test_a_bare_repository_is_told_the_hub_form(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    assert "hf:OWNER/REPO/FILE.gguf" in refused("TheBloke/Llama-2-7B-Chat-GGUF")


@pytest.mark.parametrize(
    "spec",
    [
        *("a\0b", "a\0b.gguf", "./a\0b", "\udc80", "\udc80.gguf", "a\\b", "a\\b.gguf"),
        *("x" * 5000, "./" + "x" * 5000, "x/" * 3000 + "m.gguf", "ollama:" + "x" * 5000),
        *("ember:../../etc/passwd", "ollama:../x", "lmstudio:\0"),
    ],
)
def test_names_that_no_file_can_have_are_refused_in_a_short_line(home: Path, spec: str) -> None:
    assert len(refused(spec)) < 400


def test_a_link_that_leads_nowhere_is_named_as_such(home: Path) -> None:
    (home / "m.gguf").symlink_to(home / "gone" / "m.gguf")
    message = refused(str(home / "m.gguf"))
    assert f"is a link to {home / 'gone' / 'm.gguf'}, where there is no file" in message
    (home / "round.gguf").symlink_to(home / "round.gguf")
    assert "is a link to" in refused(str(home / "round.gguf"))


def test_a_file_cut_short_in_embers_folder_is_told_from_none(home: Path) -> None:
    own = put(models_folder() / ENTRY.hub.file_name, CONTENT[:99])
    message = refused("tiny")
    assert message.startswith(f"{own} has 99 bytes, expected {ENTRY.size}")
    assert "`ember pull tiny` fetches it anew" in message
