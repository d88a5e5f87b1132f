"""Completion in shells, and the names that the scripts ask for."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from app import cli
from app.model_names import title_of
from app.sessions.chat import Chat, ChatMessage
from app.sessions.store import SessionStore, default_path
from models.finding.catalogue import CATALOGUE
from models.finding.store import models_folder
from models.text.messages import Role
from tests.app.conftest import Ember
from tests.models.samples import put

ROOT = Path(cli.__file__).parents[1]
SHELLS = ("bash", "zsh", "fish", "tcsh")
# Answers as bash asks: what may follow words, of which the last is begun.
ASK = """
source {script}
COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_shtab_ember; printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, and nothing that leads out of it."""
    for name in ("EMBER_CACHE", "XDG_CACHE_HOME", "XDG_DATA_HOME", "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def _save_chats(*titles: str) -> list[str]:
    """The numbers of new chats."""
    store = SessionStore.open(default_path())
    chats = [Chat(title=each, model="smollm2") for each in titles]
    for chat in chats:
        chat.messages.append(ChatMessage(role=Role.USER, text="hello"))
        store.save(chat)
    store.close()
    return [str(chat.id) for chat in chats]


@pytest.mark.parametrize("shell", SHELLS)
def test_scripts_complete_commands_flags_and_names(ember: Ember, shell: str) -> None:
    script = ember("completion", shell).out
    for said in (*cli._COMMANDS, "repeat-penalty", "hkivi4", "completion --list models"):
        assert said in script
    assert "completion --list chats" in script


@pytest.mark.parametrize("shell", [each for each in SHELLS if shutil.which(each)])
def test_shells_read_their_scripts(ember: Ember, shell: str) -> None:
    script = ember("completion", shell).out
    done = subprocess.run(
        [shell, "-f" if shell == "tcsh" else "-n"],
        input=script,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("ember cali", {"calibrate"}),
        ("ember run --repeat", {"--repeat-penalty"}),
        ("ember run --backend re", {"reference"}),
        ("ember run --kv hkivi", {"hkivi2", "hkivi3", "hkivi4", "hkivi5"}),
        ("ember run -m smollm2-3", {"smollm2-360m"}),
        ("ember chats res", {"resume"}),
        ("ember bench spe", {"speed"}),
    ],
)
def test_bash_completes(words: str, found: set[str], ember: Ember, home: Path) -> None:
    script = home / "script"
    script.write_text(ember("completion", "bash").out)
    assert _asked(script, words, home) == found


def test_bash_completes_the_numbers_of_chats(ember: Ember, home: Path) -> None:
    numbers = _save_chats("one", "two")
    script = home / "script"
    script.write_text(ember("completion", "bash").out)
    for words in ("ember chats resume ''", "ember chat --resume ''"):
        assert _asked(script, words, home) >= {*numbers}


def _asked(script: Path, words: str, home: Path) -> set[str]:
    program = home / "ember"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m app "$@"\n')
    program.chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", ASK.format(script=script, words=words)],
        cwd=ROOT,
        env=os.environ | {"PATH": f"{home}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return set(done.stdout.split())


def test_models_on_this_machine_come_first(ember: Ember, home: Path) -> None:
    put(models_folder() / "my own.gguf")
    names = ember("completion", "--list", "models").out.splitlines()
    assert names == ["ember:my own.gguf", *(each.name for each in CATALOGUE)]


def test_without_chats_none_are_made(ember: Ember, home: Path) -> None:
    assert ember("completion", "--list", "chats").out == ""
    assert not default_path().exists()


@pytest.mark.parametrize("names", ["models", "chats"])
def test_names_are_listed_without_the_librarys_weight(names: str, home: Path) -> None:
    _save_chats("one")
    script = (
        "import sys; from app import cli; "
        f"cli.run(['completion', '--list', '{names}']); "
        "print({'numpy', 'mlx', 'rich', 'textual'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "set()"


def test_it_is_one_of_both(ember: Ember) -> None:
    assert "one of the arguments SHELL --list is required" in ember("completion").error_line()
    assert "not allowed with" in ember("completion", "bash", "--list", "models").error_line()


@pytest.mark.parametrize(
    ("spec", "shown"),
    [
        ("smollm2", "SmolLM2 135M Instruct · Q4_1"),
        ("SmolLM2", "SmolLM2 135M Instruct · Q4_1"),
        ("hf:someone/Some-GGUF/some-model-7b.Q4_K_M.gguf@main", "Some Model 7B · Q4_K_M"),
        ("ollama:llama3.2:1b", "llama3.2:1b"),
        ("/a/folder/tiny.gguf", "Tiny"),
    ],
)
def test_names_that_load_a_model_have_a_title(spec: str, shown: str) -> None:
    assert title_of(spec) == shown
