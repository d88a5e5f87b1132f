import os
from pathlib import Path

import pytest

from app.chat.mentions import paths_beginning, read_text, with_mentioned
from app.chat.state import Draft
from app.sessions.chat import Attachment
from kvcache import EmberError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "notes.md").write_text("\ufeffone\ntwo")
    (root / "my list.txt").write_text("three")
    (root / "sub" / ".hidden").write_text("four")
    monkeypatch.chdir(root)
    return root


def attached(text: str) -> tuple[Attachment, ...]:
    return with_mentioned(Draft(text=text)).attachments


def test_mentioned_files_are_read_once() -> None:
    found = attached('compare @notes.md, @notes.md and @"my list.txt". Mail me@notes.md')
    assert [(each.name, each.text) for each in found] == [
        ("notes.md", "one\ntwo"),
        ("my list.txt", "three"),
    ]


def test_other_words_with_an_at_stay_words() -> None:
    assert attached("ask @alice or @nowhere.txt @ " + "@" + "x" * 5000) == ()


@pytest.mark.parametrize(
    "written", ['"my list.txt"', "'my list.txt'", "my\\ list.txt", "./my\\ list.txt."]
)
def test_a_name_with_a_space_is_written_as_shells_do(written: str) -> None:
    assert [each.text for each in attached(f"read @{written} now")] == ["three"]


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("/nosuch.txt", "cannot read /nosuch.txt"),
        ("./nosuch.txt,", "cannot read nosuch.txt .* no file: @ ./nosuch.txt$"),
        ("../root/sub", "root/sub is a folder"),
        ("~", "is a folder"),
        ("~nobody-of-that-name/x", "cannot read ~nobody"),
        ('"no such.txt"', "cannot read no such.txt"),
    ],
)
def test_what_is_written_as_a_path_and_is_no_file_is_refused(written: str, said: str) -> None:
    with pytest.raises(EmberError, match=said):
        attached(f"read @{written} now")


def test_what_is_with_a_draft_is_not_read_again() -> None:
    known = (Attachment(name="/gone.txt", text="as it was"),)
    draft = Draft(text="read @/gone.txt, and @notes.md", attachments=known)
    assert [each.text for each in with_mentioned(draft).attachments] == ["as it was", "one\ntwo"]


def test_what_is_no_text_is_refused(folder: Path) -> None:
    (folder / "bin").write_bytes(b"\x7fELF\0\0")
    (folder / "latin").write_bytes("für".encode("latin-1"))
    with (folder / "large").open("wb") as file:
        file.truncate(5 << 20)
    for name, said in (("bin", "no text file"), ("latin", "no text file"), ("large", "5.0 MiB")):
        with pytest.raises(EmberError, match=said):
            attached(f"read @{name}")


def test_what_never_ends_is_not_read(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    for path, said in ((Path("/dev/zero"), "no file"), (folder / "pipe", "no file")):
        with pytest.raises(EmberError, match=said):
            read_text(path)
    with pytest.raises(EmberError, match="a folder"):
        read_text(folder / "sub")
    with pytest.raises(EmberError, match="cannot read"):
        read_text(Path("a\0b"))


def test_paths_are_completed_folders_first() -> None:
    assert paths_beginning("") == ["sub/", "my list.txt", "notes.md"]
    assert paths_beginning("N") == ["notes.md"]
    assert paths_beginning("sub/") == []
    assert paths_beginning("sub/.") == ["sub/.hidden"]
    assert paths_beginning("nowhere/x") == []
