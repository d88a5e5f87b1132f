"""Chat templates for files that have none, and which of them fits a file."""

import re
from enum import Enum

from models.tokenizer import Tokenizer


class TemplateSource(Enum):
    """Where a chat template came from."""

    FILE = "the file"
    CHATML = "built-in ChatML"
    ZEPHYR = "built-in Zephyr"
    LLAMA2 = "built-in Llama-2"
    GUESS = "built-in ChatML, a guess"


_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_ZEPHYR = (
    "{% for message in messages %}"
    "{{ '<|' + message.role + '|>\n' + message.content + eos_token + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
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

_TEXTS = {
    TemplateSource.CHATML: _CHATML,
    TemplateSource.ZEPHYR: _ZEPHYR,
    TemplateSource.LLAMA2: _LLAMA2,
    TemplateSource.GUESS: _CHATML,
}

_NAMES = (
    (re.compile(r"tiny[\s_-]*llama|zephyr", re.IGNORECASE), TemplateSource.ZEPHYR),
    (re.compile(r"llama[\s_-]*v?2|code[\s_-]*llama", re.IGNORECASE), TemplateSource.LLAMA2),
)


def builtin_text(source: TemplateSource) -> str:
    """The template of a built-in source."""
    return _TEXTS[source]


def builtin_source(name: object, tokenizer: Tokenizer) -> TemplateSource:
    """The built-in template for a model of this `general.name` and vocabulary.

    A vocabulary with `<|im_start|>` decides for ChatML. Where nothing decides, ChatML
    is a guess, as in llama.cpp.
    """
    if tokenizer.id_of("<|im_start|>") is not None:
        return TemplateSource.CHATML
    for pattern, source in _NAMES:
        if pattern.search(str(name or "")):
            return source
    return TemplateSource.GUESS
