"""Chat templates through the commands, the engine and the chat: told, given, stopped."""

import io
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from app import cli
from app.chat_tokens import ChatTokens
from app.engine import Engine, Request
from app.events import Finished
from app.options import LoadOptions
from app.service.contract import Ask, ModelInfo, Prepared
from app.service.live_service import LiveService
from kvcache import Backend, CacheConfig
from models import load
from models.gguf.tensor_types import TensorType
from models.text.builtin_templates import TemplateSource
from models.text.messages import Message, Role, conversation
from tests.app.conftest import TINY
from tests.app.terminal import END, INTERRUPT, QUIT, READS_LINE, Terminal
from tests.gguf_factory import every_matrix, sentencepiece_tokenizer, write_llama

ENDLESS = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
    "{% endfor %}{% endfor %}{% endfor %}"
)
HEAD = "{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}"
EACH = "{% for m in messages %}{{ m.role + ' ' + m.content + ' ' }}{% endfor %}" + HEAD
# Long enough for no question that it is tried on.
LATER = "{% if messages[-1].content | length > 20 %}" + ENDLESS + "{% endif %}" + EACH
PARTS = "{% for m in messages %}{{ m.role }} {{ m.content[0].text }} {% endfor %}" + HEAD
LONG = "ba ce di fo gu ha je ki"
SECONDS = 60
ESCAPE = b"\x1b"


@pytest.fixture(scope="session")
def with_template(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Writes a tiny model with a chat template."""
    folder = tmp_path_factory.mktemp("templates")

    def write(template: str) -> Path:
        path = folder / f"{abs(hash(template))}.gguf"
        if not path.exists():
            keys = sentencepiece_tokenizer(TINY.vocab) | {"tokenizer.chat_template": template}
            write_llama(
                path,
                config=TINY,
                types=every_matrix(TensorType.Q8_0),
                tokenizer_metadata=keys,
                seed=5,
            )
        return path

    return write


WithTemplate = Callable[[str], Path]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ember(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line in this process; returns the exit code and what was written."""

    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            code = cli.run([str(argument) for argument in arguments])
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        return code, *capsys.readouterr()

    return run


USELESS = {
    "{% if %}": "is no valid jinja2 template: Expected an expression",
    "{{ cycler() }}": "failed: at least one item",
    "hello": "does not show what was said",
    "{{ 'x' | center(10 ** 10) }}": "was stopped: it took more than 512 MiB of memory",
}


@pytest.mark.parametrize("template", USELESS)
def test_a_useless_template_is_one_line_and_an_answer(
    ember: Run, with_template: WithTemplate, template: str
) -> None:
    code, out, err = ember("run", "-p", "ba", "-m", with_template(template), "--json", *FEW)
    assert code == 0
    assert json.loads(out)["generated_tokens"] == 3
    assert err.startswith(f"ember: the model's chat template {USELESS[template]}")
    assert err.endswith("taken instead: built-in ChatML, a guess (--chat-template takes another)\n")
    assert err.count("\n") == 1


def test_the_help_names_all_built_in_templates(ember: Run) -> None:
    for command in ("run", "chat"):
        _, out, _ = ember(command, "--help")
        words = set(re.findall(r"\w+", out))
        assert {source.name.lower() for source in TemplateSource if source.is_builtin} - words == {
            "guess"
        }


FEW = ["--max-tokens", "3", "--backend", "reference"]


def test_who_needs_no_template_does_not_hear_of_it(
    ember: Run, with_template: WithTemplate, tmp_path: Path
) -> None:
    path = with_template("{% if %}")
    text = tmp_path / "text"
    text.write_text(LONG * 5, encoding="utf-8")
    for command in (
        ["run", "--raw", "-p", "ba", *FEW, "--json", "-m", path],
        ["tokenize", "ba", "-m", path],
        ["inspect", path],
        ["perplexity", text, "--skip", "4", "--backend", "reference", "-m", path],
    ):
        code, out, err = ember(*command)
        assert (code, err) == (0, "")
        assert out


def test_the_chat_tells_it_before_the_first_question(
    ember: Run, with_template: WithTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("ba\nce\n"))
    code, _, err = ember("chat", "-m", with_template("{% if %}"), *FEW)
    assert code == 0
    assert err.startswith("ember: the model's chat template is no valid jinja2 template")
    assert err.count("chat template") == 1


def test_what_a_question_brings_to_light_is_told_with_it(
    ember: Run, with_template: WithTemplate
) -> None:
    path = with_template("{% for m in messages if m.content != 'ba' %}{{ m.content }}{% endfor %}")
    code, _, err = ember("run", "-p", "ba", "-m", path, "--json", *FEW)
    assert code == 0
    assert err.startswith("ember: the model's chat template does not show all that was asked; ")
    code, _, err = ember("run", "-p", "ce", "--system", "ba", "-m", path, "--json", *FEW)
    assert (code, err) == (0, "")
    drops = with_template(
        "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"
    )
    code, _, err = ember("run", "-p", "ce", "--system", "ba", "-m", drops, "--json", *FEW)
    assert (code, err.count("\n")) == (0, 1)
    assert "has no place for a system prompt: it goes before the first question" in err


def test_another_template_is_given(ember: Run, with_template: WithTemplate, tmp_path: Path) -> None:
    path = with_template("{% if %}")
    mine = tmp_path / "mine.jinja"
    mine.write_text(PARTS, encoding="utf-8")
    prompts = []
    for choice in ("llama2", "alpaca", mine):
        flags = ["--chat-template", choice, "--json", *FEW]
        code, out, err = ember("run", "-p", LONG, "-m", path, *flags)
        assert (code, err) == (0, "")
        prompts.append(json.loads(out)["prompt_tokens"])
    assert len(set(prompts)) == 3
    mine.write_text("{{ 1 // 0 }}", encoding="utf-8")
    for choice, status, message in (
        ("nosuch", 2, "no chat template 'nosuch'"),
        (mine, 1, "mine.jinja failed: "),
    ):
        for command in (["run", "-p", "ba"], ["chat", "--plain"]):
            code, out, err = ember(*command, "-m", path, "--chat-template", choice, *FEW)
            assert (code, out, err.count("\n")) == (status, "", 1)
            assert message in err
    code, _, err = ember("run", "--raw", "-p", "ba", "-m", path, "--chat-template", "chatml")
    assert (code, err.count("\n")) == (2, 1)


@pytest.mark.parametrize("template", [PARTS, EACH, "{% if %}"])
def test_a_conversation_is_reused_whatever_its_format(
    with_template: WithTemplate, template: str
) -> None:
    engine = Engine(load(with_template(template), backend=Backend.REFERENCE))
    chat = ChatTokens(engine.loaded)
    said: list[Message] = []
    held = 0
    for question in (LONG, "di", "fo gu"):
        said += conversation(question)
        prompt = chat.prompt(said).ids
        *_, end = engine.generate(Request(prompt=prompt, max_tokens=5))
        assert isinstance(end, Finished)
        # The last token that was sampled is not in the cache.
        assert end.completion.reused_tokens == max(held - 1, 0)
        chat.answered(end.completion)
        held = len(prompt) + len(end.completion.tokens)
        said.append(Message(role=Role.ASSISTANT, content=end.completion.text))


@pytest.mark.parametrize(
    "command", [["run", "-p", LONG], ["run", "-p", LONG, "--keep", "system"], ["chat", "--plain"]]
)
def test_ctrl_c_is_heard_while_a_template_renders(
    with_template: WithTemplate, command: list[str]
) -> None:
    template = LATER if command == ["run", "-p", LONG] else ENDLESS
    arguments = [*command, "-m", str(with_template(template)), "--backend", "reference"]
    process = subprocess.Popen(
        [sys.executable, "-m", "app", *arguments],
        # What is piped in goes along with a prompt.
        stdin=subprocess.DEVNULL if "-p" in command else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(cli.__file__).parent.parent,
    )
    _wait_until_rendering(psutil.Process(process.pid))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, out, err) == (130, "", "ember: interrupted\n")


def _wait_until_rendering(owner: psutil.Process) -> None:
    """Until a process's worker computes: it starts in a tenth of this."""
    until = time.monotonic() + SECONDS
    while not any(child.cpu_times().user > 0.5 for child in _workers(owner)):
        assert time.monotonic() < until
        time.sleep(0.01)


def _workers(owner: psutil.Process) -> list[psutil.Process]:
    """The workers of a process that run."""
    running = []
    for child in owner.children():
        # One may end meanwhile.
        with suppress(psutil.Error):
            if "-I" in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                running.append(child)
    return running


def test_the_line_chat_goes_on_after_a_question_whose_template_was_stopped(
    with_template: WithTemplate, folders: dict[str, str]
) -> None:
    model = str(with_template(LATER))
    terminal = Terminal("chat", "--plain", "-m", model, *FEW, environment=folders)
    terminal.wait_for(READS_LINE)
    terminal.type(LONG.encode() + b"\n")
    _wait_until_rendering(psutil.Process(terminal.process.pid))
    terminal.type(INTERRUPT)
    terminal.wait_for("ember: stopped")
    # The question stays in the chat, and would be read with the next.
    terminal.type(b"/new\nba\n")
    terminal.wait_for(" tok/s · answer")
    terminal.type(END)
    assert terminal.close() == 0
    assert "Traceback" not in terminal.shown


@pytest.mark.parametrize("key", [QUIT, ESCAPE])
def test_the_chat_is_left_while_a_template_renders(
    with_template: WithTemplate, tmp_path: Path, key: bytes
) -> None:
    folders = {"XDG_DATA_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    command = ["-m", str(with_template(ENDLESS)), "--backend", "reference"]
    terminal = Terminal("chat", *command, environment=folders)
    terminal.wait_for("loading")
    _wait_until_rendering(psutil.Process(terminal.process.pid))
    (worker,) = _workers(psutil.Process(terminal.process.pid))
    terminal.type(key)
    if key == ESCAPE:
        psutil.wait_procs([worker], SECONDS)
        assert not worker.is_running()
        terminal.type(QUIT)
    assert terminal.close() == 0
    assert not worker.is_running()
    assert "Traceback" not in terminal.shown
    assert "taken instead" not in terminal.shown


def test_a_template_that_is_none_opens_no_full_screen(with_template: WithTemplate) -> None:
    terminal = Terminal("chat", "-m", str(with_template(EACH)), "--chat-template", "nosuch")
    terminal.wait_for(
        "--chat-template: no chat template 'nosuch': expected a file, or one of chatml"
    )
    assert terminal.close() == 2


@pytest.fixture
def service() -> Iterator[LiveService]:
    service = LiveService(CacheConfig(backend=Backend.REFERENCE))
    yield service
    service.close()


def test_stopping_the_chat_stops_its_template(
    service: LiveService, with_template: WithTemplate
) -> None:
    stopped = service.load(str(with_template(ENDLESS)))
    _wait_until_rendering(psutil.Process())
    service.cancel()
    assert not any(isinstance(event, ModelInfo) for event in stopped)
    *_, info = service.load(str(with_template(LATER)))
    assert isinstance(info, ModelInfo)
    asked = service.answer(Ask(messages=tuple(conversation(LONG))))
    _wait_until_rendering(psutil.Process())
    service.cancel()
    assert list(asked) == []
    assert isinstance(list(service.answer(Ask(messages=tuple(conversation("ba")))))[-1], Finished)
    left = service.answer(Ask(messages=tuple(conversation(LONG))))
    _wait_until_rendering(psutil.Process())
    service.close()
    assert list(left) == []


def test_the_chat_is_told_of_its_template(
    service: LiveService, with_template: WithTemplate
) -> None:
    text = "{% for m in messages if m.content != 'ba' %}{{ m.content }}{% endfor %}"
    *_, info = service.load(str(with_template("{% if %}")))
    assert isinstance(info, ModelInfo)
    assert [note for note in info.notes if "chat template is no valid jinja2" in note]
    *_, info = service.load(str(with_template(text)))
    assert isinstance(info, ModelInfo)
    assert not [note for note in info.notes if "template" in note]
    first, *_ = service.answer(Ask(messages=tuple(conversation("ba")), max_tokens=2))
    assert isinstance(first, Prepared)
    (note,) = first.notes
    assert "does not show all that was asked" in note
    first, *_ = service.answer(Ask(messages=tuple(conversation("ba")), max_tokens=2))
    assert isinstance(first, Prepared)
    assert first.notes == ()


DROPS = "{% for m in messages if m.content != 'ba' %}{{ m.content }}{% endfor %}"
SYSTEM = "ce di fo"


def test_what_is_kept_is_counted_by_the_template_that_is_taken(
    ember: Run, with_template: WithTemplate
) -> None:
    command = ["run", "-p", "ba", "--system", SYSTEM, "--keep", "system", "--json", *FEW]
    command += ["-m", str(with_template(DROPS))]
    kept = []
    for flags in ([], ["--chat-template", "chatml"]):
        code, out, _ = ember(*command, *flags)
        assert code == 0
        kept.append(json.loads(out)["cache"]["sink"])
    assert kept[0] == kept[1] > 4


def test_the_chat_keeps_the_system_prompt_as_it_is_now(with_template: WithTemplate) -> None:
    def asked(service: LiveService, question: str, system: str) -> int:
        ask = Ask(messages=tuple(conversation(question, system=system)), max_tokens=2)
        assert isinstance(list(service.answer(ask))[-1], Finished)
        return service.layer_stats()[0].sink

    config = CacheConfig(backend=Backend.REFERENCE)
    kept = []
    for template in (None, "chatml"):
        service = LiveService(config, keep_system=SYSTEM, load=LoadOptions(chat_template=template))
        assert list(service.load(str(with_template(DROPS))))
        asked(service, "ba", SYSTEM)
        kept.append([asked(service, "ba", SYSTEM), asked(service, "ba", f"{SYSTEM} gu ha")])
        service.close()
    assert kept[0] == kept[1]
    assert kept[0][0] < kept[0][1]
