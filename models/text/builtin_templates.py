"""Chat templates that ember brings along, and which of them fits a file that has none."""

import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from kvcache.errors import reason
from models.errors import ChatTemplateError
from models.text.tokenizer import Tokenizer


class TemplateSource(Enum):
    """Where a chat template came from. Names of built-in ones, in lower case, are users' words."""

    FILE = "the file"
    GIVEN = "the user"
    CHATML = "built-in ChatML"
    LLAMA2 = "built-in Llama-2"
    LLAMA3 = "built-in Llama-3"
    MISTRAL = "built-in Mistral"
    GEMMA = "built-in Gemma"
    PHI3 = "built-in Phi-3"
    PHI4 = "built-in Phi-4"
    PHI4MINI = "built-in Phi-4-mini"
    GRANITE = "built-in Granite"
    OLMO2 = "built-in OLMo-2"
    ZEPHYR = "built-in Zephyr"
    VICUNA = "built-in Vicuna"
    ALPACA = "built-in Alpaca"
    GUESS = "built-in ChatML, a guess"

    @property
    def is_builtin(self) -> bool:
        """Whether the template is one of ember's own."""
        return self not in (TemplateSource.FILE, TemplateSource.GIVEN)


@dataclass(frozen=True, kw_only=True)
class TemplateText:
    """A jinja2 text. name: what a message calls it."""

    source: TemplateSource
    text: str
    name: str


_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# The system prompt has no turn of its own: it goes inside the first question.
_LLAMA2 = (
    "{% set system = namespace(text='') %}"
    "{% for message in messages %}"
    "{% if message.role == 'system' %}"
    "{% set system.text = '<<SYS>>\n' + message.content + '\n<</SYS>>\n\n' %}"
    "{% elif message.role == 'user' %}"
    "{{ bos_token + '[INST] ' + system.text + message.content.strip() + ' [/INST]' }}"
    "{% set system.text = '' %}"
    "{% else %}"
    "{{ ' ' + message.content.strip() + ' ' + eos_token }}"
    "{% endif %}"
    "{% endfor %}"
)

_LLAMA3 = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' }}"
    "{{ message.content.strip() + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}"
)

# As in Llama-2, without marks around the system prompt.
_MISTRAL = (
    "{{ bos_token }}"
    "{% set system = namespace(text='') %}"
    "{% for message in messages %}"
    "{% if message.role == 'system' %}"
    "{% set system.text = message.content + '\n\n' %}"
    "{% elif message.role == 'user' %}"
    "{{ '[INST] ' + system.text + message.content + ' [/INST]' }}"
    "{% set system.text = '' %}"
    "{% else %}"
    "{{ ' ' + message.content.strip() + eos_token }}"
    "{% endif %}"
    "{% endfor %}"
)

_GEMMA = (
    "{{ bos_token }}"
    "{% set system = namespace(text='') %}"
    "{% for message in messages %}"
    "{% if message.role == 'system' %}"
    "{% set system.text = message.content.strip() + '\n\n' %}"
    "{% else %}"
    "{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else 'user') + '\n' }}"
    "{{ system.text + message.content.strip() + '<end_of_turn>\n' }}"
    "{% set system.text = '' %}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

_PHI3 = (
    "{% for message in messages %}"
    "{{ '<|' + message.role + '|>\n' + message.content + '<|end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)

_PHI4 = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '<|im_sep|>' + message.content + '<|im_end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)

_PHI4MINI = (
    "{% for message in messages %}"
    "{{ '<|' + message.role + '|>' + message.content + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

# Without the system prompt of its own that IBM's puts where there is none.
_GRANITE = (
    "{% for message in messages %}"
    "{{ '<|start_of_role|>' + message.role + '<|end_of_role|>' }}"
    "{{ message.content + '<|end_of_text|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"
)

# Only an answer has an end, and the last line none.
_OLMO2 = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message.role + '|>\n' + message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% if message.role != 'assistant' or not loop.last %}{{ '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)

_ZEPHYR = (
    "{% for message in messages %}"
    "{{ '<|' + message.role + '|>\n' + message.content + eos_token + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)

_VICUNA = (
    "{% for message in messages %}"
    "{% if message.role == 'system' %}{{ message.content + '\n\n' }}"
    "{% elif message.role == 'user' %}{{ 'USER: ' + message.content + '\n' }}"
    "{% else %}{{ 'ASSISTANT: ' + message.content + eos_token + '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

_ALPACA = (
    "{% for message in messages %}"
    "{% if message.role == 'system' %}{{ message.content + '\n\n' }}"
    "{% elif message.role == 'user' %}{{ '### Instruction:\n' + message.content + '\n\n' }}"
    "{% else %}{{ '### Response:\n' + message.content + eos_token + '\n\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
)

_TEXTS = {
    TemplateSource.CHATML: _CHATML,
    TemplateSource.LLAMA2: _LLAMA2,
    TemplateSource.LLAMA3: _LLAMA3,
    TemplateSource.MISTRAL: _MISTRAL,
    TemplateSource.GEMMA: _GEMMA,
    TemplateSource.PHI3: _PHI3,
    TemplateSource.PHI4: _PHI4,
    TemplateSource.PHI4MINI: _PHI4MINI,
    TemplateSource.GRANITE: _GRANITE,
    TemplateSource.OLMO2: _OLMO2,
    TemplateSource.ZEPHYR: _ZEPHYR,
    TemplateSource.VICUNA: _VICUNA,
    TemplateSource.ALPACA: _ALPACA,
    TemplateSource.GUESS: _CHATML,
}

# What decides, in a vocabulary or in the text of a template that is of no use: all of a line.
_MARKS = (
    (("<|im_start|>", "<|im_sep|>"), TemplateSource.PHI4),
    (("<|im_start|>",), TemplateSource.CHATML),
    (("<|start_header_id|>",), TemplateSource.LLAMA3),
    (("<start_of_turn>",), TemplateSource.GEMMA),
    (("<|start_of_role|>", "<|end_of_role|>"), TemplateSource.GRANITE),
    (("<|end|>", "<|user|>", "<|assistant|>", "<|tool|>"), TemplateSource.PHI4MINI),
    (("<|end|>", "<|user|>", "<|assistant|>"), TemplateSource.PHI3),
    (("[INST]", "<<SYS>>"), TemplateSource.LLAMA2),
    (("[INST]",), TemplateSource.MISTRAL),
    (("<|user|>", "<|assistant|>"), TemplateSource.ZEPHYR),
    (("USER: ", "ASSISTANT:"), TemplateSource.VICUNA),
    (("### Instruction:", "### Response:"), TemplateSource.ALPACA),
)

_NAMES = (
    (re.compile(r"tiny[\s_-]*llama|zephyr", re.IGNORECASE), TemplateSource.ZEPHYR),
    (re.compile(r"olmo[\s_-]*2", re.IGNORECASE), TemplateSource.OLMO2),
    (re.compile(r"llama[\s_-]*v?2|code[\s_-]*llama", re.IGNORECASE), TemplateSource.LLAMA2),
)

# Ends of a file that is read as a template, which is text of some kilobytes.
_MAX_BYTES = 1 << 20


def builtin(source: TemplateSource) -> TemplateText:
    """The template of a built-in source."""
    return TemplateText(source=source, text=_TEXTS[source], name=f"the {source.value} template")


def builtin_named(name: str) -> TemplateSource | None:
    """The built-in template of this name."""
    return _BY_NAME.get(name.strip().lower())


_BY_NAME = {source.name.lower(): source for source in _TEXTS if source is not TemplateSource.GUESS}


def given_template(spec: str) -> TemplateText:
    """The template that a user names: a built-in one, or a file. Raises ChatTemplateError."""
    source = builtin_named(spec)
    if source is not None:
        return builtin(source)
    path = Path(spec).expanduser()
    try:
        with path.open("rb") as file:
            # A byte order mark is no part of a text.
            text = file.read(_MAX_BYTES).decode("utf-8-sig")
    except FileNotFoundError:
        names = ", ".join(_BY_NAME)
        raise ChatTemplateError(
            f"no chat template {spec!r}: expected a file, or one of {names}"
        ) from None
    except (OSError, ValueError) as error:
        raise ChatTemplateError(f"cannot read the chat template {spec}: {reason(error)}") from error
    return TemplateText(source=TemplateSource.GIVEN, text=text, name=f"the chat template {spec}")


def builtin_source(name: object, tokenizer: Tokenizer, template: str = "") -> TemplateSource:
    """The built-in template for a model of this `general.name` and vocabulary.

    A vocabulary with a format's tokens decides, then the marks in a template that is of no
    use, then the name. Where nothing decides, ChatML is a guess, as in llama.cpp.
    """
    for marks, source in _MARKS:
        if all(tokenizer.id_of(mark) is not None for mark in marks):
            return source
    for marks, source in _MARKS:
        if all(mark in template for mark in marks):
            return source
    for pattern, source in _NAMES:
        if pattern.search(str(name or "")):
            return source
    return TemplateSource.GUESS
