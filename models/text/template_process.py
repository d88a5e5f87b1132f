"""Foreign chat templates at arm's length: each is run by a small process that is killed at a limit.

Knows how to ask it, to wait and to give up; nothing of conversations or models. The
process (`template_worker`) imports jinja2 alone, is started at the first question or
earlier (`start`), is kept, and ends with the object, with this process, or when its
stdin ends. After a limit the next question starts another.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from pkgutil import get_data
from threading import Event, Lock

import psutil

from kvcache.errors import reason
from models.errors import ChatTemplateError, RenderStoppedError

# How often a wait looks whether it was stopped, and at the process's memory.
_LOOK_SECONDS = 0.03
_READ_BYTES = 1 << 16

# The worker's text is the first line that it reads, so that it runs from a zipped package
# too. No site module: nothing but the folders of jinja2's packages is on its path.
_BOOTSTRAP = (
    "import json, sys; sys.path += sys.argv[1:]; exec(json.loads(sys.stdin.buffer.readline()))"
)
_PACKAGES = ("jinja2", "markupsafe")


@dataclass(frozen=True, kw_only=True)
class TemplateLimits:
    """What one rendering may take, the compilation of its template included.

    cpu_seconds: of a processor. wall_seconds: in all; a busy machine may be slow.
    memory_bytes, characters (of text): to which `of` adds for a long question.
    """

    cpu_seconds: float = 3.0
    wall_seconds: float = 30.0
    memory_bytes: int = 512 << 20
    characters: int = 1 << 20

    def of(self, length: int) -> "TemplateLimits":
        """The limits of a question of this many characters: 16 bytes and 4 characters each."""
        return replace(
            self,
            memory_bytes=self.memory_bytes + 16 * length,
            characters=self.characters + 4 * length,
        )


class TemplateFault(Enum):
    """Why a template gave no text, as the end of a sentence about it."""

    SYNTAX = "is no valid jinja2 template"
    REFUSED = "refuses"
    FAILED = "failed"
    STOPPED = "was stopped"


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """The text of a conversation, or why there is none. message: more of it, in a line."""

    text: str = ""
    fault: TemplateFault | None = None
    message: str = ""

    @property
    def complaint(self) -> str:
        """What there is to say about the template; "" for nothing."""
        return f"{self.fault.value}: {self.message}" if self.fault is not None else ""


class TemplateProcess:
    """Renders templates in a process of its own, a question at a time. Any thread may ask."""

    def __init__(self, limits: TemplateLimits | None = None) -> None:
        self._limits = limits or TemplateLimits()
        self._lock, self._owner = Lock(), os.getpid()
        self._worker: _Worker | None = None

    def start(self) -> None:
        """Start the process, if none runs, and do not wait for it."""
        self._be_mine()
        with self._lock:
            self._running()

    def render(
        self,
        template: str,
        messages: Sequence[Mapping[str, object]],
        variables: Mapping[str, object],
        *,
        cancel: Event | None = None,
    ) -> Rendering:
        """Render a template's text over `messages` and `variables`, which are JSON.

        Raises:
            RenderStoppedError: `cancel` was set, by any thread.
            ChatTemplateError: no process could be started.
        """
        self._be_mine()
        question = json.dumps({"template": template, "messages": messages, "variables": variables})
        limits = self._limits.of(len(question))
        with self._lock:
            worker = self._running()
            try:
                lines = f"{json.dumps(asdict(limits))}\n{question}\n".encode()
                reply = worker.exchange(lines, limits, cancel)
            except _LimitError as limit:
                worker.end()
                return Rendering(fault=TemplateFault.STOPPED, message=str(limit))
            except BaseException:
                # Ctrl-C among them: what the process would answer is for nobody.
                worker.end()
                raise
        return _rendering(reply, limits)

    def _running(self) -> "_Worker":
        if self._worker is None or not self._worker.lives:
            self._worker = _Worker()
        return self._worker

    def _be_mine(self) -> None:
        """After a fork of this process, the other one's lock and pipes are not to be touched."""
        if self._owner != os.getpid():
            if self._worker is not None:
                self._worker.end.detach()
            self._lock, self._owner, self._worker = Lock(), os.getpid(), None


class _Worker:
    """The process. end: kill it and close its pipes; done at the latest with this object."""

    def __init__(self) -> None:
        self._process = _start()
        self.end = weakref.finalize(self, _end, self._process)
        source = get_data("models.text", "template_worker.py")
        assert source is not None
        assert self._process.stdin is not None
        ask = self._process.stdin.fileno()
        _written(ask, memoryview(json.dumps(source.decode()).encode() + b"\n"))
        os.set_blocking(ask, False)

    @property
    def lives(self) -> bool:
        """Whether it may be asked."""
        return self.end.alive and self._process.poll() is None

    def exchange(self, question: bytes, limits: TemplateLimits, cancel: Event | None) -> bytes:
        """Ask, and wait for the reply's line. Raises _LimitError, RenderStoppedError."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        ask, listen = self._process.stdin.fileno(), self._process.stdout.fileno()
        left, reply = memoryview(question), bytearray()
        until = time.monotonic() + limits.wall_seconds
        poll = select.poll()
        poll.register(ask, select.POLLOUT)
        poll.register(listen, select.POLLIN)
        while not reply.endswith(b"\n"):
            if cancel is not None and cancel.is_set():
                raise RenderStoppedError
            ready = [fd for fd, _ in poll.poll(_LOOK_SECONDS * 1000)]
            if ask in ready:
                left = _written(ask, left)
                if not left:
                    poll.unregister(ask)
            if listen in ready:
                data = os.read(listen, _READ_BYTES)
                if not data:
                    raise _LimitError(_obituary(self.end(), limits))
                reply += data
            if not ready:
                self._look(limits, until)
        return bytes(reply)

    def _look(self, limits: TemplateLimits, until: float) -> None:
        if time.monotonic() > until:
            raise _LimitError(f"it took more than {limits.wall_seconds:g} seconds")
        if _rss(self._process.pid) > limits.memory_bytes:
            raise _LimitError(_too_big(limits))


class _LimitError(Exception):
    """The process reached a limit, or ended."""


def _start() -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-I", "-S", "-c", _BOOTSTRAP, *_folders()]
    try:
        # A session of its own: a terminal's Ctrl-C and Ctrl-Z are for this process alone.
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        raise ChatTemplateError(
            f"cannot start a process for the chat template: {reason(error)}"
        ) from error


def _folders() -> list[str]:
    """Where the worker's packages lie."""
    specs = [find_spec(name) for name in _PACKAGES]
    origins = [spec.origin for spec in specs if spec is not None and spec.origin]
    return list(dict.fromkeys(str(Path(origin).resolve().parents[1]) for origin in origins))


def _written(fd: int, data: memoryview) -> memoryview:
    """What is left to write. A process that has ended takes nothing, and its silence says why."""
    try:
        return data[os.write(fd, data) :]
    except BrokenPipeError:
        return data[:0]


def _rendering(reply: bytes, limits: TemplateLimits) -> Rendering:
    """What the worker's reply says."""
    found = json.loads(reply)
    match found:
        case {"text": str(text)}:
            return Rendering(text=text)
        case {"fault": "memory"}:
            return Rendering(fault=TemplateFault.STOPPED, message=_too_big(limits))
        case {"fault": "length"}:
            message = f"it wrote more than {limits.characters} characters"
            return Rendering(fault=TemplateFault.STOPPED, message=message)
    return Rendering(
        fault=TemplateFault[found["fault"].upper()], message=_one_line(found["message"])
    )


def _too_big(limits: TemplateLimits) -> str:
    return f"it took more than {limits.memory_bytes >> 20} MiB of memory"


def _one_line(message: str) -> str:
    text = " ".join(message.split())
    return text if len(text) <= 200 else text[:200] + "..."


def _end(process: "subprocess.Popen[bytes]") -> int:
    """End a process and close its pipes; one that has ended keeps its own exit code."""
    process.kill()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()
    return process.wait()


def _obituary(code: int | None, limits: TemplateLimits) -> str:
    """Why the process ended in the middle of a question."""
    if code == -signal.SIGPROF:
        return f"it took more than {limits.cpu_seconds:g} seconds of processor time"
    return f"its process ended with code {code}"


def _rss(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0
