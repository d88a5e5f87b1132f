"""A conversation to the text a model was trained on, by its jinja2 template.

Knows nothing of the network or of sampling. A template comes from the file and
is untrusted: it runs in jinja2's immutable sandbox, which refuses access to
Python's internals, changes to what it was given, and ranges over 100 000.
Not bounded: time and memory. Nested loops, or a string doubled in a loop, can
take as much of either as they like.

What a message says is not escaped, as in llama.cpp and transformers: a text
that contains `<|im_end|>` ends its turn.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from models.builtin_templates import TemplateSource, builtin_source, builtin_text
from models.errors import GGUFError
from models.metadata import Metadata
from models.tokenizer import Tokenizer

_KEY = "tokenizer.chat_template"
_MAX_CHARACTERS = 1 << 18

# What foreign template code may raise, apart from jinja2's own errors.
_TEMPLATE_FAULTS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
)


class Role(StrEnum):
    """Who speaks."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


def opening(system: str | None) -> list[Message]:
    """How a conversation begins: with the system prompt, where there is one."""
    return [Message(role=Role.SYSTEM, content=system)] if system else []


def conversation(prompt: str, *, system: str | None = None) -> list[Message]:
    """A conversation of one question."""
    return [*opening(system), Message(role=Role.USER, content=prompt)]


class ChatTemplate:
    """The chat format of one model."""

    def __init__(self, text: str, tokenizer: Tokenizer, source: TemplateSource) -> None:
        """Compile a template. Raises `GGUFError` if it is none."""
        self.source = source
        self._tokenizer = tokenizer
        if len(text) > _MAX_CHARACTERS:
            raise GGUFError(
                f"{_KEY} has {len(text)} characters, expected at most {_MAX_CHARACTERS}"
            )
        try:
            self._template = _environment().from_string(text)
        except _TEMPLATE_FAULTS as fault:
            raise GGUFError(f"{_KEY} is no valid jinja2 template: {_one_line(fault)}") from fault

    @classmethod
    def from_metadata(cls, metadata: Metadata, tokenizer: Tokenizer) -> "ChatTemplate":
        """The file's template, or the built-in one that fits best; `source` says which.

        Raises:
            GGUFError: the file has a template that is not a string or does not compile.
        """
        if _KEY in metadata:
            return cls(metadata.get_string(_KEY), tokenizer, TemplateSource.FILE)
        source = builtin_source(metadata.get("general.name"), tokenizer)
        return cls(builtin_text(source), tokenizer, source)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The conversation as text; with the head of the next answer, unless told otherwise.

        Raises:
            GGUFError: the template failed, or refuses this order of messages.
        """
        turns = [{"role": message.role.value, "content": message.content} for message in messages]
        try:
            return self._template.render(
                messages=turns,
                add_generation_prompt=add_generation_prompt,
                bos_token=self._special(self._tokenizer.bos_id),
                eos_token=self._special(self._tokenizer.eos_id),
                tools=None,
                documents=None,
            )
        except _TemplateRefusal as refusal:
            raise GGUFError(f"the model's chat template refuses: {_one_line(refusal)}") from refusal
        except _TEMPLATE_FAULTS as fault:
            raise GGUFError(f"the model's chat template failed: {_one_line(fault)}") from fault

    def encode(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """The conversation as ids, with one bos token where the model wants it; never an eos."""
        text = self.render(messages, add_generation_prompt=add_generation_prompt)
        ids = self._tokenizer.encode(text, add_special=False, parse_special=True)
        bos = self._tokenizer.bos_id
        if self._tokenizer.adds_bos and bos is not None and ids[:1] != [bos]:
            ids.insert(0, bos)
        return ids

    def _special(self, id_: int | None) -> str:
        return "" if id_ is None else self._tokenizer.text(id_)


class _TemplateRefusal(jinja2.TemplateError):
    """Raised by a template through `raise_exception`."""


def _environment() -> ImmutableSandboxedEnvironment:
    """jinja2 as transformers sets it up for chat templates."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


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
    raise _TemplateRefusal(str(message))


def _strftime_now(format_: str) -> str:
    return datetime.now().strftime(format_)


def _one_line(fault: BaseException) -> str:
    text = " ".join(str(fault).split()) or type(fault).__name__
    return text if len(text) <= 200 else text[:200] + "..."
