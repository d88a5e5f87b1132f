"""ChatTemplate: llama.cpp's prompts on SmolLM2, built-in forms, hostile templates."""

from pathlib import Path
from typing import Any

import pytest

from models.builtin_templates import TemplateSource
from models.chat_template import ChatTemplate, Message, Role, conversation, opening
from models.errors import GGUFError
from models.metadata import Metadata, MetadataValue
from models.tokenizer import Tokenizer
from models.vocabulary import TokenType
from tests.models.vocabularies import Keys, byte_level, metadata_of, truth, with_scores

CONTROL = dict.fromkeys(("<s>", "</s>", "<|im_start|>", "<|im_end|>"), TokenType.CONTROL)
IDS: Keys = {"bos_token_id": 256, "eos_token_id": 257}
TALK = [
    Message(role=Role.SYSTEM, content="Be brief."),
    Message(role=Role.USER, content=" Hi "),
    Message(role=Role.ASSISTANT, content="Hello"),
    Message(role=Role.USER, content="Bye"),
]


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer.from_metadata(byte_level(special=CONTROL, changes=IDS))


def template(text: str, tokenizer: Tokenizer) -> ChatTemplate:
    return ChatTemplate.from_metadata(Metadata({"tokenizer.chat_template": text}), tokenizer)


@pytest.mark.network
@pytest.mark.parametrize("entry", truth()["greedy_exact"], ids=lambda entry: len(entry["rendered"]))
def test_same_prompt_as_llama_cpp(smollm2_path: Path, entry: dict[str, Any]) -> None:
    keys = metadata_of(smollm2_path)
    chat = ChatTemplate.from_metadata(keys, Tokenizer.from_metadata(keys))
    messages = [
        Message(role=Role(message["role"]), content=message["content"])
        for message in entry["messages"]
    ]
    assert chat.source is TemplateSource.FILE
    assert chat.render(messages) == entry["rendered"]
    assert chat.encode(messages) == entry["prompt_ids"]
    bare = chat.render(messages, add_generation_prompt=False)
    assert entry["rendered"] == bare + "<|im_start|>assistant\n"


def test_opening_and_conversation() -> None:
    assert opening(None) == opening("") == []
    assert conversation("Hi", system="Be brief.") == [
        Message(role=Role.SYSTEM, content="Be brief."),
        Message(role=Role.USER, content="Hi"),
    ]


def test_chatml_where_the_vocabulary_has_it(tokenizer: Tokenizer) -> None:
    chat = ChatTemplate.from_metadata(Metadata({"general.name": "TinyLlama"}), tokenizer)
    assert chat.source is TemplateSource.CHATML
    assert chat.render(TALK[:2]) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi <|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert not chat.render(TALK[:2], add_generation_prompt=False).endswith("assistant\n")


@pytest.mark.parametrize("name", ["tinyllama_tinyllama-1.1b-chat-v1.0", "TinyLlama 1.1B Chat"])
def test_zephyr_for_tinyllama(name: str) -> None:
    chat = builtin(name)
    assert chat.source is TemplateSource.ZEPHYR
    assert chat.render(TALK) == (
        "<|system|>\nBe brief.</s>\n<|user|>\n Hi </s>\n<|assistant|>\nHello</s>\n"
        "<|user|>\nBye</s>\n<|assistant|>\n"
    )


@pytest.mark.parametrize("name", ["LLaMA v2", "Llama-2-7b-chat-hf", "codellama_CodeLlama-7b"])
def test_llama_2(name: str) -> None:
    chat = builtin(name)
    assert chat.source is TemplateSource.LLAMA2
    assert chat.render(TALK) == (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello </s><s>[INST] Bye [/INST]"
    )


@pytest.mark.parametrize("name", ["Mystery 7B", None, 3])
def test_a_guess_where_nothing_fits(name: MetadataValue | None) -> None:
    assert builtin(name).source is TemplateSource.GUESS


def builtin(name: MetadataValue | None) -> ChatTemplate:
    keys = with_scores({"a": -1.0})
    if name is not None:
        keys["general.name"] = name
    return ChatTemplate.from_metadata(keys, Tokenizer.from_metadata(keys))


def test_one_bos_and_no_eos() -> None:
    adding = Tokenizer.from_metadata(
        byte_level(special=CONTROL, changes=IDS | {"add_bos_token": True, "add_eos_token": True})
    )
    expected = [256, *adding.encode("Hi", add_special=False)]
    for text in ("{{ bos_token }}{{ messages[0].content }}", "{{ messages[0].content }}"):
        assert template(text, adding).encode(conversation("Hi")) == expected


def test_control_tokens_of_the_template_are_parsed(tokenizer: Tokenizer) -> None:
    ids = template("<|im_start|>{{ messages[0]['content'] }}", tokenizer).encode(conversation("a"))
    assert ids == [tokenizer.id_of("<|im_start|>"), tokenizer.id_of("a")]


def test_jinja_is_set_up_as_in_transformers(tokenizer: Tokenizer) -> None:
    text = """
{%- for message in messages %}
    {%- if loop.index0 == 2 %}{% break %}{% endif %}
    {% if message.role is defined %}
{{ message | tojson }}{{ eos_token }}
    {% endif %}
{% endfor %}
{%- if tools is none and not nothing %}{{ strftime_now('%Y') | length }}{% endif %}"""
    rendered = template(text, tokenizer).render(TALK)
    assert rendered == (
        '{"role": "system", "content": "Be brief."}</s>\n{"role": "user", "content": " Hi "}</s>\n4'
    )


FAULTY = {
    "{% if %}": "is no valid jinja2 template: Expected an expression",
    "{% for x in y %}" * 30 + "{% endfor %}" * 30: "is no valid jinja2 template: too many",
    "(" * 300_000: "has 300000 characters, expected at most 262144",
}


@pytest.mark.parametrize("text", FAULTY, ids=lambda text: text[:12])
def test_what_does_not_compile_is_refused(tokenizer: Tokenizer, text: str) -> None:
    with pytest.raises(GGUFError, match=r"tokenizer\.chat_template " + FAULTY[text]):
        template(text, tokenizer)


FAILING = {
    "{{ raise_exception('Roles must\nalternate') }}": "refuses: Roles must alternate",
    "{{ nothing.at_all }}": "failed: 'nothing' is undefined",
    "{{ messages[0].content + 1 }}": "failed: can only concatenate str",
    "{{ 1 // 0 }}": "failed: .*division",
    "{{ range(999999999) | length }}": "failed: Range too big",
    "{{ ''.__class__.__mro__ }}": "failed: access to attribute '__class__'",
    "{{ raise_exception.__globals__.x }}": "failed: access to attribute '__globals__'",
    "{{ ''['__class__']['__base__']() }}": "failed: access to attribute '__class__'",
    "{{ messages.append(1) }}": "failed: access to attribute 'append'",
    "{{ messages[0].update(role='x') }}": "failed: access to attribute 'update'",
    "{{ '{0.__class__.__mro__}'.format(1) }}": "failed: access to attribute '__class__'",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "failed: maximum recursion depth",
    "{% include 'etc' %}": "failed: no loader",
    "{{ messages | tojson(indent=[]) }}": "failed: ",
}


@pytest.mark.parametrize("text", FAILING)
def test_what_fails_is_told_in_one_line(tokenizer: Tokenizer, text: str) -> None:
    chat = template(text, tokenizer)
    with pytest.raises(GGUFError, match="the model's chat template " + FAILING[text]) as caught:
        chat.render(TALK)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_a_template_must_be_a_string(tokenizer: Tokenizer) -> None:
    with pytest.raises(GGUFError, match="is an array of strings, expected a string"):
        ChatTemplate.from_metadata(Metadata({"tokenizer.chat_template": ["x"]}), tokenizer)
