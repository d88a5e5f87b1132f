from dataclasses import replace
from pathlib import Path

import pytest

from models.finding.hub import HubFile, cached, cached_revisions, commit_of, hub_folder
from tests.models.samples import COMMIT, CONTENT, ENTRY, OTHER_COMMIT, put, put_hub

WANTED = ENTRY.hub


@pytest.mark.parametrize(
    ("repo", "file", "revision"),
    [
        *(("r", "f", "main"), ("o/r/s", "f", "main"), ("o/..", "f", "main")),
        *(("o/r", "", "main"), ("o/r", "f", ""), ("o/r", "f", "../x")),
        *(("o/r", "a\\b", "main"), ("o/r", "..\\b", "main"), ("o/r", "a\0b", "main")),
        *(("o/r", "a\nb", "main"), ("o/r", "\udc80", "main"), ("o/r", "f", "\x1b[2J")),
        *(("o/r", "é" * 128, "main"), ("o/" + "r" * 256, "f", "main")),
    ],
)
def test_malformed_names_are_refused(repo: str, file: str, revision: str) -> None:
    with pytest.raises(ValueError, match="expected hf:OWNER/REPO/FILE"):
        HubFile(repo=repo, file=file, revision=revision)


def test_text_leaves_out_the_usual_revision() -> None:
    wanted = HubFile(repo="o/r", file="d/f.gguf")
    assert str(wanted) == "hf:o/r/d/f.gguf"
    assert str(replace(wanted, revision="v2")) == "hf:o/r/d/f.gguf@v2"
    assert wanted.file_name == "f.gguf"


def test_cache_folder_is_huggingface_hubs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub_folder() == home / ".cache/huggingface/hub"
    monkeypatch.setenv("HF_HOME", "~/hf")
    assert hub_folder() == home / "hf/hub"
    monkeypatch.setenv("HF_HUB_CACHE", "$HOME/cache")
    assert hub_folder() == home / "cache"


def test_cached_knows_branches_and_commits(home: Path) -> None:
    assert cached(WANTED) is None
    path = put_hub(hub_folder(), WANTED)
    assert cached(WANTED) == path
    assert cached(replace(WANTED, revision=COMMIT)) == path
    assert cached(replace(WANTED, revision=OTHER_COMMIT)) is None
    (path.resolve()).unlink()
    assert cached(WANTED) is None


def test_cached_revisions_begin_with_the_one_asked_for(home: Path) -> None:
    main = put_hub(hub_folder(), WANTED, OTHER_COMMIT)
    other = put_hub(hub_folder(), replace(WANTED, revision=COMMIT), COMMIT, CONTENT * 2)
    assert list(cached_revisions(WANTED)) == [main, other]
    assert list(cached_revisions(replace(WANTED, repo="o/none"))) == []


@pytest.mark.parametrize("said", ["../../../secret", "/etc", "", "main", COMMIT[:-1]])
def test_what_a_cache_says_does_not_lead_out_of_it(home: Path, said: str) -> None:
    path = put_hub(hub_folder(), WANTED)
    repo = path.parents[2]
    put(home / "secret" / WANTED.file)
    put(repo / "refs" / "main", said.encode())
    assert commit_of(repo, "main") is None
    assert cached(WANTED) is None


def test_a_file_that_may_not_be_read_is_not_there(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_hub(hub_folder(), WANTED)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert cached(WANTED) is None
