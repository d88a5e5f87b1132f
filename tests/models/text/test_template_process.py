"""TemplateProcess: limits of foreign templates, and the life of the process that runs them."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import RenderStoppedError
from models.text.template_process import TemplateFault, TemplateLimits, TemplateProcess

SAID = [{"role": "user", "content": "Hi"}]
ECHO = "{{ messages[0].content }}"
ENDLESS = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
    "{% endfor %}{% endfor %}{% endfor %}"
)
PATIENCE = 60.0


@pytest.fixture(scope="module")
def strict() -> TemplateProcess:
    """Limits that are reached soon."""
    return TemplateProcess(
        TemplateLimits(cpu_seconds=0.4, memory_bytes=192 << 20, characters=10_000)
    )


@pytest.fixture
def patient() -> TemplateProcess:
    """No limit that a test would wait for."""
    return TemplateProcess(TemplateLimits(cpu_seconds=600, wall_seconds=600))


def worker_of(process: TemplateProcess) -> psutil.Process:
    assert process._worker is not None
    return psutil.Process(process._worker._process.pid)


def has_ended(worker: psutil.Process) -> bool:
    try:
        return not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


TIME, MEMORY, LENGTH = "seconds of processor time", "MiB of memory", "characters"
HOSTILE = {
    ENDLESS: TIME,
    "{{ 2 ** (2 ** 36) }}": TIME,
    "{{ messages | length ** 0 + 3 ** (3 ** 20) }}": TIME,
    "{{ 'x' | center(10 ** 10) }}": MEMORY,
    "{{ '%9999999999d' % 1 }}": MEMORY,
    "{{ 'a\nb' | indent('x' * 10 ** 9) }}": MEMORY,
    "{% set all = namespace(x='x') %}"
    "{% for _ in range(60) %}{% set all.x = all.x + all.x %}{% endfor %}": MEMORY,
    "{{ ([0] * 10 ** 9) | join }}": MEMORY,
    "{{ 'x' | center(10 ** 6) }}": LENGTH,
    "{% for _ in range(99999) %}{{ messages }}{% endfor %}": LENGTH,
    "{{ lipsum(999) }}": LENGTH,
}


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:40])
def test_a_hostile_template_reaches_a_limit(strict: TemplateProcess, text: str) -> None:
    found = strict.render(text, SAID, {})
    assert found.fault is TemplateFault.STOPPED
    assert HOSTILE[text] in found.message
    assert strict.render(ECHO, SAID, {}).text == "Hi"


def test_text_may_be_as_long_as_a_multiple_of_the_question(strict: TemplateProcess) -> None:
    long = [{"role": "user", "content": "x" * 100_003}]
    assert len(strict.render(ECHO * 3, long, {}).text) == 3 * 100_003
    assert strict.render(ECHO * 7, long, {}).fault is TemplateFault.STOPPED


def test_wall_clock_and_resident_memory_are_watched_from_outside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not every system has limits of memory, and a process may get no processor at all."""
    asleep = TemplateProcess(TemplateLimits(wall_seconds=0.3))
    for said in (SAID, [{"content": "more than a pipe takes" * 10_007}]):
        asleep.start()
        worker_of(asleep).suspend()
        assert asleep.render(ECHO, said, {}).message == "it took more than 0.3 seconds"
    monkeypatch.setattr("models.text.template_process._rss", lambda _pid: 1 << 40)
    heavy = TemplateProcess(TemplateLimits(memory_bytes=700 << 20, cpu_seconds=600))
    assert heavy.render(ENDLESS, SAID, {}).message == "it took more than 700 MiB of memory"


def test_a_worker_that_dies_is_replaced(patient: TemplateProcess) -> None:
    assert patient.render(ECHO, SAID, {}).text == "Hi"
    first = worker_of(patient)
    first.kill()
    until(lambda: first.status() == psutil.STATUS_ZOMBIE)
    assert patient.render(ECHO, SAID, {}).text == "Hi"
    second = worker_of(patient)
    assert second.pid != first.pid
    killed = threading.Timer(0.3, second.kill)
    killed.start()
    found = patient.render(ENDLESS, SAID, {})
    assert (found.fault, found.message) == (
        TemplateFault.STOPPED,
        "its process ended with code -9",
    )
    assert patient.render(ECHO, SAID, {}).text == "Hi"


def test_it_is_stopped_from_another_thread(patient: TemplateProcess) -> None:
    cancel = threading.Event()
    threading.Timer(0.2, cancel.set).start()
    with pytest.raises(RenderStoppedError):
        patient.render(ENDLESS, SAID, {}, cancel=cancel)
    assert patient.render(ECHO, SAID, {}).text == "Hi"
    # What was asked before is answered to nobody.
    assert patient.render(ECHO * 2, SAID, {}).text == "HiHi"


def test_threads_take_turns(patient: TemplateProcess) -> None:
    texts: list[str] = []

    def ask(number: int) -> None:
        said = [{"role": "user", "content": f"{number}" * 50_021}]
        texts.append(patient.render(ECHO, said, {}).text[:1])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(texts) == list("0123456")


FORK = f"""
import os
from models.text.template_process import TemplateProcess
process = TemplateProcess()
assert process.render({ECHO!r}, {SAID!r}, {{}}).text == "Hi"
first = process._worker._process.pid
if pid := os.fork():
    assert os.waitpid(pid, 0)[1] == 0
    assert process.render({ECHO!r}, {SAID!r}, {{}}).text == "Hi"
    assert process._worker._process.pid == first
else:
    assert process.render({ECHO * 2!r}, {SAID!r}, {{}}).text == "HiHi"
    assert process._worker._process.pid != first
"""


def test_a_forked_process_has_a_worker_of_its_own() -> None:
    """In a process without threads, as any that forks should be."""
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=PATIENCE)


def test_the_worker_ends_with_its_owner() -> None:
    process = TemplateProcess()
    process.start()
    worker = worker_of(process)
    assert worker.is_running()
    del process
    gc.collect()
    assert not worker.is_running()


SCRIPT = f"""
import sys, threading
from models.text.template_process import TemplateLimits, TemplateProcess
process = TemplateProcess(TemplateLimits(cpu_seconds=1))
print(process.render({ECHO!r}, {SAID!r}, {{}}).text, flush=True)
if len(sys.argv) == 1:
    threading.Event().wait()
process.render({ENDLESS!r}, {SAID!r}, {{}})
"""


@pytest.fixture
def other() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starts processes that render, and have said so."""
    begun: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", SCRIPT, *arguments]
        begun.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert begun[-1].stdout is not None
        assert begun[-1].stdout.readline() == "Hi\n"
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("arguments", [(), ("endless",)])
def test_no_orphan_is_left(
    other: Callable[..., "subprocess.Popen[str]"], arguments: tuple[str, ...]
) -> None:
    """In the middle of a rendering too, when its processor time is up."""
    process = other(*arguments)
    (worker,) = psutil.Process(process.pid).children()
    if arguments:
        # That it has begun to render.
        until(lambda: worker.cpu_times().user > 0.2)
    process.kill()
    process.wait()
    until(lambda: has_ended(worker))


def test_an_interrupt_is_heard_at_once(other: Callable[..., "subprocess.Popen[str]"]) -> None:
    process = other("endless")
    (worker,) = psutil.Process(process.pid).children()
    assert os.getsid(worker.pid) != os.getsid(process.pid)
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == -signal.SIGINT
    until(lambda: has_ended(worker))


def test_it_imports_jinja2_and_nothing_of_ember() -> None:
    process = TemplateProcess()
    assert process.render(ECHO, SAID, {}).text == "Hi"
    worker = worker_of(process)
    if sys.platform == "linux":
        maps = "\n".join(each.path for each in worker.memory_maps())
        assert "mlx" not in maps
        assert "markupsafe" in maps
    assert worker.memory_info().rss < 60 << 20


@pytest.mark.parametrize("text", ["\ud800 \U0001f600 \x00\n\u2028", "a" * 200_003, ""])
def test_any_text_comes_back_as_it_was(strict: TemplateProcess, text: str) -> None:
    assert strict.render(ECHO, [{"content": text}], {}).text == text


MARKS = ["{{", "}}", "{%", "%}", "{#", "#}", "(", ")", "|", "'", "=", "~", "**", "\n"]
WORDS = ["messages[0]", "for", "in", "if", "endif", "endfor", "set", "x", "9", "batch", "join"]


@settings(max_examples=150)
@given(st.lists(st.sampled_from(MARKS + WORDS), max_size=30).map(" ".join))
def test_no_text_gets_past_the_boundary(strict: TemplateProcess, text: str) -> None:
    found = strict.render(text, SAID, {})
    assert (found.fault is None) == (found.complaint == "")
    assert "\n" not in found.message
