"""The process that a chat template runs in: two lines in for a question, one out for the reply.

A template is foreign code, so this is run as a program of its own, from its text
(`template_process`): it imports jinja2 alone, and knows nothing of models. Inside,
jinja2's immutable sandbox refuses access to Python's internals, changes to what a
template was given, and ranges over 100 000. The processor time and memory of each
question are limited here, wall-clock time by who asks.

The first line has the limits: cpu_seconds, memory_bytes, characters; the second the
template, messages and variables. A reply has either text, or fault and message.
"""

import json
import resource
import signal
import sys
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class _Refusal(jinja2.TemplateError):
    """Raised by a template through `raise_exception`."""


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`: marks what a model says, for training; here it is its content alone."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

    def parse(self, parser: Parser) -> nodes.Node:
        """The content, in a scope of its own as in transformers."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: object) -> None:
    raise _Refusal(str(message))


def _strftime_now(format_: str) -> str:
    return datetime.now().strftime(format_)


def _environment() -> ImmutableSandboxedEnvironment:
    """jinja2 as transformers sets it up for chat templates."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, "jinja2.ext.loopcontrols", "jinja2.ext.do"],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


# Questions differ in their messages: the template is compiled for the first.
@lru_cache(maxsize=4)
def _compiled(text: str) -> jinja2.Template:
    return _environment().from_string(text)


def _render(question: dict[str, Any], characters: int) -> dict[str, str]:
    try:
        template = _compiled(question["template"])
    except MemoryError as fault:
        return _fault("memory", fault)
    # The boundary of foreign code: whatever its text makes of jinja2 and Python's compiler.
    except Exception as fault:  # noqa: BLE001
        return _fault("syntax", fault)
    pieces = []
    try:
        for piece in template.generate(messages=question["messages"], **question["variables"]):
            pieces.append(piece)
            characters -= len(piece)
            if characters < 0:
                return {"fault": "length", "message": ""}
        return {"text": "".join(pieces)}
    except _Refusal as refusal:
        return _fault("refused", refusal)
    except MemoryError as fault:
        return _fault("memory", fault)
    # As above: filters raise what they like (AssertionError, RuntimeError, ...).
    except Exception as fault:  # noqa: BLE001
        return _fault("failed", fault)


def _fault(kind: str, fault: Exception) -> dict[str, str]:
    return {"fault": kind, "message": str(fault)[:1000] or type(fault).__name__}


def _limit(kind: int, size: int) -> None:
    """A soft limit, where this system has it: macOS takes none of memory."""
    hard = resource.getrlimit(kind)[1]
    # No limit is -1 here, which is no least number.
    soft = min((each for each in (size, hard) if each >= 0), default=resource.RLIM_INFINITY)
    try:
        resource.setrlimit(kind, (soft, hard))
    except (OSError, ValueError):
        return


def _serve() -> None:
    """Answer until stdin ends, as it does with the process at its other end."""
    _limit(resource.RLIMIT_CORE, 0)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    for line in sys.stdin.buffer:
        limits = json.loads(line)
        # Its signal ends the process, in the middle of a multiplication too.
        signal.setitimer(signal.ITIMER_PROF, limits["cpu_seconds"])
        _limit(resource.RLIMIT_AS, limits["memory_bytes"])
        reply = _render(json.loads(sys.stdin.buffer.readline()), limits["characters"])
        _limit(resource.RLIMIT_AS, resource.RLIM_INFINITY)
        sys.stdout.buffer.write(json.dumps(reply).encode() + b"\n")
        sys.stdout.buffer.flush()
        signal.setitimer(signal.ITIMER_PROF, 0)


if __name__ == "__main__":
    _serve()
