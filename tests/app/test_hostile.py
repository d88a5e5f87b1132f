"""Every command, on a terminal, with a model that wants to command it."""

import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest

from app import cli
from app.bench.showing.document import document
from app.sessions.chat import Attachment, Chat, ChatMessage
from app.sessions.export import as_json
from app.sessions.store import SessionStore, default_path
from kvcache.native.kept import kernels_folder
from models.text.messages import Role
from tests.app.terminal import END, QUIT, READS_LINE, Terminal
from tests.models.finding.hub_server import running_hub
from tests.scripted_model import write_scripted

# Sets the title, clears, colours by C1, writes from right to left, rings, goes back, draws a link.
EVIL = (
    "a\x1b]0;owned\x07b\x1b[2Jc\x9b31md\u202ee\u2066f\x08g\x7fh\x0ei\u2028j\x85k\rover\x1b[1Al"
    "[bold]m[link=x]n"
)
NAME = f"{EVIL}\n.gguf"
# Sequences and characters, cut in two.
CUT = [b"\x1b", b"[2J", b"\xc2", b"\x9b", b"31m", b"\xe2\x80", b"\xae"]
ANSWER = [*CUT, b"\r", b"\x07", b"\x1b]0;owned", b"\x08over", "é".encode()]
RAISES = "{{ raise_exception('" + EVIL + "') }}"

# What rich's bars and tables write, and line ends as a terminal makes them of ours.
_OWN = re.compile(r"\x1b\[(\?25[lh]|2K|1A(?=[\x1b\r])|[0-9;]*m)|\r\x1b|\r+\n|[\n\t]")
# What the line editor writes before, in and after a line that is typed.
_EDITOR = re.compile(r"([\x08\r]*\x1b\[(\?(1|7|12|25|2004)[lh]|[0-9]*[CD]|[JK]|0m))+[\x08\r]*")


class Place:
    """Folders in which everything has a hostile name, and a model in them."""

    def __init__(self, root: Path) -> None:
        studio = root / ".lmstudio" / "models" / "owner" / "repo"
        studio.mkdir(parents=True)
        self.root, self.model, self.refusing = root, studio / NAME, studio / f"r{NAME}"
        metadata = {"general.name": EVIL, f"x.{EVIL}": EVIL, "general.description": EVIL}
        special = [f"<|{EVIL}|>"]
        write_scripted(self.model, ANSWER, metadata=metadata, special=special)
        template = {"tokenizer.chat_template": RAISES}
        write_scripted(self.refusing, ANSWER, metadata=metadata | template, special=special)
        self.text = root / f"{EVIL}.txt"
        self.text.write_text(EVIL * 9, encoding="utf-8")
        row = {"section": EVIL, EVIL: EVIL}
        self.results = [root / f"{each}.json" for each in "ab"]
        for path in self.results:
            path.write_text(json.dumps(document([row], {EVIL: f"{path} {EVIL}"}, [])))
        folders = ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME")
        cache = {"EMBER_CACHE": str(root / "cache")}
        self.environment = dict.fromkeys(folders, str(root)) | cache
        _share_kernels(root / "cache" / "native")

    def shows(self, *arguments: str, keys: bytes = b"", after: str = "") -> str:
        """What a command shows to its end; `keys` are typed once it has shown `after`."""
        terminal = Terminal(*arguments, environment=self.environment)
        if after:
            terminal.wait_for(after)
            terminal.type(keys)
        terminal.close()
        return terminal.shown


def _share_kernels(folder: Path) -> None:
    """They need not be compiled again for a cache of its own."""
    folder.parent.mkdir(parents=True)
    kernels_folder().mkdir(parents=True, exist_ok=True)
    folder.symlink_to(kernels_folder())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """With a Hub of strangers, too."""
    place = Place(tmp_path_factory.mktemp("hostile"))
    with pytest.MonkeyPatch.context() as patch, running_hub(patch) as hub:
        hub.add("o/model", "[bold]m[link=x]n-Q4_0.gguf", place.model.read_bytes())
        hub.told["o/model"] = {"gguf": {"architecture": EVIL}}
        place.environment["HF_ENDPOINT"] = hub.url
        yield place


def _walks(place: Place) -> dict[str, list[list[str]]]:
    """By command, what it is called with; all of it but the flags comes from strangers."""
    model, refusing, text = str(place.model), str(place.refusing), str(place.text)
    prompts = place.root / "prompts.txt"
    prompts.write_text(EVIL.replace("\r", "") + "\n", encoding="utf-8")
    results = [str(path) for path in place.results]
    exported = place.root / f"{EVIL}.json"
    message = ChatMessage(role=Role.USER, text=EVIL, attachments=(Attachment(name=NAME, text="x"),))
    exported.write_text(as_json(Chat(title=EVIL, model=EVIL, system=EVIL, messages=[message])))
    return {
        "chat": [["--plain", "--max-tokens", "40", "-m", each] for each in (model, refusing)],
        "chats": [
            ["import", str(exported)],
            ["import", text],
            [],
            ["search", "owned"],
            ["list", "--json"],
            ["export", "1"],
            ["export", "1", str(exported)],
        ],
        "run": [
            ["-m", model, "-p", EVIL, "--system", EVIL],
            ["-m", model, "-p", "hi", "--json"],
            ["-m", model, "--prompts-file", str(prompts)],
            ["-m", refusing, "-p", "hi"],
            ["-m", model, "--prompts-file", text + EVIL],
            ["-m", model, "-p", "hi", "--kv-budget", EVIL],
            ["-m", NAME, "-p", "hi"],
        ],
        "serve": [["-m", NAME], [text, "--api-key", "k"], ["-m", model, "--ctx", EVIL]],
        "bench": [["roofline", "-m", model], ["compare", *results], ["compare", text, text]],
        "ls": [[], ["--json"]],
        "search": [["model"], ["model", "--json"], ["o/model"], [EVIL]],
        "pull": [[model], [f"hf:{EVIL}"]],
        "rm": [[f"lmstudio:owner/repo/{NAME}"]],
        "inspect": [[model], [model, "--json"], [text]],
        "tokenize": [["-m", model, f"<|{EVIL}|>{EVIL}"], ["-m", model, EVIL, "--json"]],
        "perplexity": [[text, "-m", model, "--skip", "0", "--tokens", "40"], [EVIL, "-m", model]],
        "calibrate": [[model], [model, "--json"], [text], [EVIL]],
        "doctor": [[]],
        "completion": [["bash"], ["--list", "models"], ["--list", "chats"]],
        "man": [[]],
    }


def _assert_harmless(shown: str) -> None:
    """Nothing but text, line ends, and what rich writes for colours and bars."""
    rest = _OWN.sub("", shown)
    at = next((at for at, each in enumerate(rest) if _is_obeyed(each)), None)
    assert at is None, rest[max(at - 80, 0) : at + 80]


def _is_obeyed(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or bool(
        re.match("[\u202a-\u202e\u2066-\u2069]", character)
    )


@pytest.mark.parametrize("command", cli._COMMANDS)
def test_no_command_lets_a_stranger_command_the_terminal(command: str, place: Place) -> None:
    told = ""
    for arguments in _walks(place)[command]:
        chat = {"keys": b"hi\n/stats\n/nonsense\n" + END, "after": READS_LINE}
        told += place.shows(command, *arguments, **(chat if command == "chat" else {}))
    told += place.shows(command, f"--{EVIL}")
    _assert_harmless(_EDITOR.sub("", told) if command == "chat" else told)
    assert "␛]0;owned␇b␛[2Jc\ufffd31md\ufffde" in told
    assert "[bold]m[link=x]n" in told
    assert "Traceback" not in told


def test_a_stranger_s_name_stays_in_its_line(place: Place) -> None:
    listed = place.shows("ls").splitlines()
    assert sum("owner/repo" in line for line in listed) == 2
    # A size that nobody has told is blank.
    assert all(re.search(r"\d GB  | {11}", line) for line in listed if line.startswith(" "))


def test_the_answer_is_seen_as_it_is(place: Place) -> None:
    shown = place.shows("run", "-m", str(place.model), "--raw", "-p", "hi")
    assert "␛[2J\ufffd31m\ufffd␍␇␛]0;owned␈overé" in shown


# Textual clears and moves; this of a stranger's it would not write.
_STRANGE = ("\x1b]0;", "\x1b[2Jc", "\x1b[1Al", "\rover", "owned\x07", *"\x9b\x85\x08\x7f\x0e\u2028")


def test_no_screen_of_the_chat_lets_a_stranger_command_the_terminal(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, folder in place.environment.items():
        monkeypatch.setenv(name, folder)
    saved = SessionStore.open(default_path())
    message = ChatMessage(role=Role.USER, text=EVIL, attachments=(Attachment(name=NAME, text="x"),))
    answer = ChatMessage(role=Role.ASSISTANT, text=f"recalled {EVIL}", error=EVIL)
    saved.save(Chat(title=EVIL, model=EVIL, messages=[message, answer]))
    saved.close()
    terminal = Terminal("chat", "-m", str(place.model), environment=place.environment)
    escape, enter = b"\x1b", b"\r"
    terminal.wait_for("/451")
    for keys, appears in (
        (b"hi" + enter, "13 tok"),
        (b"\x0c", "load or fetch"),
        (escape, ""),
        (b"\x0f", "search titles"),
        (b"\x1b[B\x1bOQ", "Rename"),
        (escape, ""),
        (b"\x1b[19~", "cannot be brought back"),
        (escape, ""),
        (enter, "recalled"),
        (b"\x1bOR", "on the cpu backend"),
        (escape, ""),
        (f"@{place.root}/".encode(), "owned"),
        (enter, ""),
        (b"/model lmstudio:owner/repo/none" + enter, "none"),
    ):
        terminal.type(keys)
        if appears:
            terminal.wait_for(appears)
        terminal.read_for(0.3)
    terminal.type(QUIT)
    assert terminal.close() == 0
    for each in _STRANGE:
        assert each not in terminal.shown, each
    assert "Traceback" not in terminal.shown
