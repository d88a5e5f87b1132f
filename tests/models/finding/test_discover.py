import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import ModelNotFoundError
from models.finding import catalogue
from models.finding.discover import FoundModel, Origin, discover, without_files
from models.finding.hub import hub_folder
from models.finding.source import locate
from models.finding.store import models_folder
from tests.models.samples import (
    COMMIT,
    CONTENT,
    ENTRY,
    OTHER_COMMIT,
    put,
    put_hub,
    put_ollama,
)

OLLAMA_DEFAULT = "registry.example/library"


def names() -> list[str]:
    return [model.name for model in discover()]


@pytest.fixture(autouse=True)
def _small_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "CATALOGUE", (ENTRY,))


def test_an_empty_machine_has_no_models_and_is_left_empty(home: Path) -> None:
    assert discover() == []
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    "folder",
    ["/usr/share/ollama/.ollama/models", "/var/lib/ollama", "/var/snap/ollama/common/models"],
)
def test_ollamas_service_is_looked_into(
    home: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    """Below a root that a test may write to, see the fixture."""
    blob = put_ollama(Path(f"{home}{folder}"), f"{OLLAMA_DEFAULT}/llama3.2/1b")
    put_ollama(home / ".ollama/models", f"{OLLAMA_DEFAULT}/phi/mini")
    assert names() == ["ollama:phi:mini", "ollama:llama3.2:1b"]
    assert locate("ollama:llama3.2:1b") == blob
    monkeypatch.setenv("OLLAMA_MODELS", str(home / "o"))
    mine = put_ollama(home / "o", f"{OLLAMA_DEFAULT}/llama3.2/1b", CONTENT * 2)
    assert names() == ["ollama:llama3.2:1b"]
    assert locate("ollama:llama3.2:1b") == mine


def test_files_that_may_not_be_read_are_skipped(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_ollama(home / ".ollama/models", f"{OLLAMA_DEFAULT}/open/1b")
    closed = put_ollama(home / ".ollama/models", f"{OLLAMA_DEFAULT}/closed/1b", CONTENT * 2)
    put(home / ".lmstudio/models/m/r/closed.gguf")
    monkeypatch.setattr("os.access", lambda path, mode: path != closed and path.suffix != ".gguf")
    assert names() == ["ollama:open:1b"]


def test_folders_that_no_spec_can_name_are_skipped(home: Path) -> None:
    for folder in ("models--..--x", "models--a--..", "models--a\\b--c", "models--a--\x1b[2J"):
        put(hub_folder() / folder / "snapshots" / COMMIT / "m.gguf")
    put_hub(hub_folder(), ENTRY.hub)
    assert names() == ["tiny"]


def test_each_program_is_looked_into(home: Path) -> None:
    own = put(models_folder() / ENTRY.hub.file_name)
    studio = put(home / ".lmstudio/models/maker/Repo-GGUF/m.gguf", CONTENT * 2)
    blob = put_ollama(home / ".ollama/models", f"{OLLAMA_DEFAULT}/llama3.2/1b", CONTENT * 3)
    shared = put_hub(hub_folder(), replace(ENTRY.hub, file="sub/x.gguf"), content=CONTENT * 5)
    size = len(CONTENT)
    assert discover() == [
        FoundModel(name="tiny", path=own, size=size, origin=Origin.EMBER),
        FoundModel(
            name="hf:someone/Tiny-GGUF/sub/x.gguf",
            path=shared,
            size=5 * size,
            origin=Origin.HUGGING_FACE,
        ),
        FoundModel(
            name="lmstudio:maker/Repo-GGUF/m.gguf",
            path=studio,
            size=2 * size,
            origin=Origin.LM_STUDIO,
        ),
        FoundModel(name="ollama:llama3.2:1b", path=blob, size=3 * size, origin=Origin.OLLAMA),
    ]


def test_every_name_can_be_typed_back(home: Path) -> None:
    put(models_folder() / ENTRY.hub.file_name)
    put(models_folder() / "mine.gguf")
    put_hub(hub_folder(), ENTRY.hub)
    put_hub(hub_folder(), replace(ENTRY.hub, revision=OTHER_COMMIT), OTHER_COMMIT, CONTENT * 2)
    put(home / ".lmstudio/models/maker/Repo-GGUF/m.gguf")
    put_ollama(home / ".ollama/models", "hf.co/bartowski/Llama/Q4_K_M")
    found = discover()
    assert len(found) == 6
    assert {model.name: model.path for model in found} == {
        model.name: locate(model.name) for model in found
    }


def test_environment_moves_the_folders(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(home / "o"))
    monkeypatch.setenv("HF_HOME", str(home / "h"))
    put_ollama(home / "o", f"{OLLAMA_DEFAULT}/phi/mini")
    put_hub(home / "h/hub", replace(ENTRY.hub, file="y.gguf"))
    assert names() == ["hf:someone/Tiny-GGUF/y.gguf", "ollama:phi:mini"]
    monkeypatch.setenv("HF_HUB_CACHE", str(home / "elsewhere"))
    assert names() == ["ollama:phi:mini"]


def test_a_catalogue_name_goes_to_the_copy_that_it_stands_for(home: Path) -> None:
    put_hub(hub_folder(), ENTRY.hub)
    assert names() == ["tiny"]
    put(models_folder() / ENTRY.hub.file_name)
    assert names() == ["tiny", "hf:someone/Tiny-GGUF/tiny.Q4_1.gguf"]


def test_hub_revisions_are_told_apart_and_one_blob_is_listed_once(home: Path) -> None:
    wanted = replace(ENTRY.hub, file="z.gguf")
    put_hub(hub_folder(), replace(wanted, revision=COMMIT), COMMIT, CONTENT * 2)
    same = "1" * 40
    put_hub(hub_folder(), replace(wanted, revision=same), same)
    put_hub(hub_folder(), wanted, OTHER_COMMIT)
    assert names() == [str(wanted), f"{wanted}@{COMMIT}"]


def test_a_catalogue_name_is_kept_where_several_snapshots_share_the_blob(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = replace(ENTRY, hub=replace(ENTRY.hub, revision=OTHER_COMMIT))
    monkeypatch.setattr(catalogue, "CATALOGUE", (pinned,))
    put_hub(hub_folder(), ENTRY.hub)
    put_hub(hub_folder(), pinned.hub, OTHER_COMMIT)
    assert names() == ["tiny"]


@pytest.mark.parametrize(
    ("manifest", "name"),
    [
        (f"{OLLAMA_DEFAULT}/llama3.2/latest", "ollama:llama3.2:latest"),
        ("registry.example/someone/m/7b", "ollama:someone/m:7b"),
        ("hf.co/someone/M-GGUF/Q4_K_M", "ollama:hf.co/someone/M-GGUF:Q4_K_M"),
    ],
)
def test_ollama_names_are_those_ollama_shows(home: Path, manifest: str, name: str) -> None:
    put_ollama(home / ".ollama/models", manifest)
    assert names() == [name]


def test_ollama_manifests_at_another_depth_are_skipped(home: Path) -> None:
    put_ollama(home / ".ollama/models", "registry.example/library/stray")
    put_ollama(home / ".ollama/models", "registry.example/library/m/7b/stray")
    assert names() == []


def test_later_shards_projectors_and_other_files_are_left_out(home: Path) -> None:
    root = home / ".lmstudio/models/m/r"
    for file in ("big-00001-of-00003.gguf", "big-00002-of-00003.gguf", "big-00003-of-00003.gguf"):
        put(root / file)
    for file in ("mmproj-model-f16.gguf", "model.safetensors", ".hidden.gguf", "x.gguf.part"):
        put(root / file)
    put(root / "empty.gguf", b"")
    put(root / ".cache" / "partial.gguf")
    assert names() == ["lmstudio:m/r/big-00001-of-00003.gguf"]


def test_the_newer_lm_studio_folder_shadows_the_older(home: Path) -> None:
    newer = put(home / ".lmstudio/models/m/r/a.gguf")
    put(home / ".cache/lm-studio/models/m/r/a.gguf", CONTENT * 2)
    put(home / ".cache/lm-studio/models/m/r/b.gguf")
    assert names() == ["lmstudio:m/r/a.gguf", "lmstudio:m/r/b.gguf"]
    assert discover()[0].path == newer


def test_links_are_followed_but_loops_and_dangling_links_are_not(home: Path) -> None:
    elsewhere = put(home / "disk/r/linked.gguf").parent
    root = home / ".lmstudio/models"
    root.mkdir(parents=True)
    (root / "m").symlink_to(elsewhere)
    (root / "loop").symlink_to(root)
    (elsewhere / "up").symlink_to(root)
    (root / "self.gguf").symlink_to(root / "self.gguf")
    (root / "gone.gguf").symlink_to(home / "no such file")
    assert names() == ["lmstudio:m/linked.gguf"]


def test_an_unreadable_folder_is_skipped(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(home / ".lmstudio/models/locked/a.gguf")
    put(home / ".lmstudio/models/open/b.gguf")
    stat = Path.stat

    def refuse(path: Path, *, follow_symlinks: bool = True) -> object:
        if "locked" in path.parts:
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(Path, "stat", refuse)
    assert names() == ["lmstudio:open/b.gguf"]


def _manifest(digest: object) -> bytes:
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": digest}
    return json.dumps({"layers": [layer]}).encode()


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"layers": null}',
        b'{"layers": []}',
        b'{"layers": [7]}',
        b'{"layers": [{"mediaType": "application/vnd.ollama.image.model"}]}',
        _manifest(None),
        _manifest("sha256:../../secret.gguf"),
        _manifest(f"sha256:{'0' * 64}"),
    ],
)
def test_broken_ollama_manifests_are_skipped(home: Path, manifest: bytes) -> None:
    root = home / ".ollama/models"
    put_ollama(root, f"{OLLAMA_DEFAULT}/good/1b")
    put(root / "manifests" / OLLAMA_DEFAULT / "bad" / "1b", manifest)
    put(root / "secret.gguf")
    assert names() == ["ollama:good:1b"]


@given(
    manifest=st.recursive(
        st.none() | st.integers() | st.text(),
        lambda e: (
            st.lists(e, max_size=3)
            | st.dictionaries(st.sampled_from(["layers", "mediaType", "digest"]), e)
        ),
    )
)
def test_no_manifest_breaks_discovery(
    manifest: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("ollama")
    put(root / "manifests/registry/library/odd/1b", json.dumps(manifest).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OLLAMA_MODELS", str(root))
        patch.setenv("HOME", str(root))
        patch.setenv("EMBER_CACHE", str(root / "ember"))
        patch.setenv("HF_HOME", str(root / "hf"))
        assert discover() == []


def test_ollamas_weights_without_a_manifest_have_a_name(home: Path) -> None:
    root = home / ".ollama/models"
    kept = put_ollama(root, f"{OLLAMA_DEFAULT}/good/1b")
    lost = put_ollama(root, f"{OLLAMA_DEFAULT}/gone/1b", CONTENT * 2)
    (root / "manifests" / OLLAMA_DEFAULT / "gone/1b").unlink()
    put(root / "blobs" / f"sha256-{'a' * 64}", b'{"a": "template"}')
    put(root / "blobs" / f"sha256-{'b' * 64}-partial", CONTENT)
    left_over = f"ollama:{lost.name[:19]}"
    assert {model.name: model.path for model in discover()} == {
        "ollama:good:1b": kept,
        left_over: lost,
    }
    assert locate(left_over) == lost
    assert without_files() == {}


def test_files_that_a_manifest_needs_beside_weights_are_not_left_over(home: Path) -> None:
    root = home / ".ollama/models"
    put_ollama(root, f"{OLLAMA_DEFAULT}/good/1b")
    put(root / "blobs" / f"sha256-{'1' * 64}")  # named as a licence there
    assert names() == ["ollama:good:1b"]


def test_ollamas_manifests_without_weights_are_named(home: Path) -> None:
    root = home / ".ollama/models"
    blob = put_ollama(root, f"{OLLAMA_DEFAULT}/phi/latest")
    blob.unlink()
    assert names() == []
    assert without_files() == {"ollama:phi:latest": blob}
    for typed in ("ollama:phi", "ollama:phi:latest"):
        with pytest.raises(ModelNotFoundError) as caught:
            locate(typed)
        assert str(caught.value) == (
            f"ollama:phi:latest has a manifest, but its weights {blob} are missing or may not be "
            "read; `ollama pull phi:latest` fetches them"
        )
