"""What a chat template does with thinking is found by trying it."""

from typing import Any

import pytest

from models.text.builtin_templates import TemplateSource, TemplateText
from models.text.chat_template import ChatTemplate
from models.text.messages import Message, Role, conversation, opening
from models.text.template_process import Rendering, TemplateFault, TemplateLimits, TemplateProcess
from models.text.template_thinking import Form, Switch
from models.text.tokenizer import Tokenizer
from models.text.vocabulary import TokenType
from tests import thinking_templates as templates
from tests.models.text.vocabularies import byte_level

PROCESS = TemplateProcess()
ENDS = {"<s>": TokenType.CONTROL, "</s>": TokenType.CONTROL}
TOKENIZER = Tokenizer.from_metadata(
    byte_level(special=ENDS, changes={"bos_token_id": 256, "eos_token_id": 257})
)


def chat(text: str, tokenizer: Tokenizer = TOKENIZER) -> ChatTemplate:
    template = TemplateText(source=TemplateSource.FILE, text=text, name="the template")
    return ChatTemplate(template, tokenizer, otherwise=TemplateSource.CHATML, process=PROCESS)


def question(text: str) -> Message:
    return Message(role=Role.USER, content=text)


def thought(thinking: str, text: str) -> Message:
    return Message(role=Role.ASSISTANT, content=text, thinking=thinking)


FOUND = [
    (templates.QWEN, Switch.VARIABLE, Form.KEYS, "\n</think>\n\n"),
    (templates.OPENED, Switch.NONE, Form.LEFT_OUT, "\n</think>\n\n"),
    (templates.SWITCHED, Switch.VARIABLE, Form.LEFT_OUT, "\n</think>\n"),
    (templates.WORDED, Switch.WORD, Form.LEFT_OUT, "</think>"),
    (templates.PARTS, Switch.NONE, Form.PARTS, "[/THINK]"),
    (
        templates.CHANNELS,
        Switch.NONE,
        Form.KEYS,
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
    (templates.GRANITE, Switch.VARIABLE, Form.LEFT_OUT, "</think>\n<response>"),
]


@pytest.mark.parametrize(("text", "switch", "form", "closing"), FOUND)
def test_templates_are_tried(text: str, switch: Switch, form: Form, closing: str) -> None:
    template = chat(text)
    known = template.thinking
    assert (known.switch, known.form, known.closing) == (switch, form, closing)
    assert template.take_notes() == []


def test_a_template_without_marks_is_not_tried() -> None:
    known = chat("{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}").thinking
    assert (known.marks, known.switch, known.form) == (None, Switch.NONE, Form.LEFT_OUT)


def test_a_built_in_template_has_the_vocabularys_marks() -> None:
    special = dict.fromkeys(("<think>", "</think>"), TokenType.USER_DEFINED)
    tokenizer = Tokenizer.from_metadata(byte_level(special=special))
    known = chat("{% if %}", tokenizer).thinking
    assert known.marks is not None
    assert (known.closing, known.switch) == ("\n</think>\n\n", Switch.NONE)


def test_a_template_that_thinking_stops_is_asked_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    stuck = "{% if thinking is defined %}" + endless + "{% endif %}" + templates.OPENED
    process = TemplateProcess(TemplateLimits(cpu_seconds=0.3))
    counted, render = 0, process.render

    def count(*asked: Any, **more: Any) -> Rendering:
        nonlocal counted
        shown = render(*asked, **more)
        counted += shown.fault is TemplateFault.STOPPED
        return shown

    monkeypatch.setattr(process, "render", count)
    template = TemplateText(source=TemplateSource.FILE, text=stuck, name="the template")
    tried = ChatTemplate(template, TOKENIZER, otherwise=TemplateSource.CHATML, process=process)
    assert (tried.thinking.switch, tried.thinking.form) == (Switch.NONE, Form.LEFT_OUT)
    assert counted == 1
    assert "Hi" in tried.render(conversation("Hi"))


def test_the_switch_is_set() -> None:
    said = conversation("Hi")
    template = chat(templates.QWEN)
    off = template.render(said, think=False)
    assert off.endswith("assistant\n<think>\n\n</think>\n\n")
    assert template.render(said, think=True) == template.render(said)
    assert chat(templates.SWITCHED).render(said, think=False).count("/no_think") == 1
    opened = chat(templates.OPENED)
    assert opened.render(said, think=False) == opened.render(said)
    assert "<response>" in chat(templates.GRANITE).render(said, think=True)


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_a_word_of_the_system_prompt_is_a_switch(system: str | None) -> None:
    template = chat(templates.WORDED)
    said = conversation("Hi", system=system)
    assert template.render(said, think=True).endswith("assistant\n<think>\n")
    off = template.render(said, think=False)
    assert off.endswith("assistant\n<think></think>")
    assert (system or "") in off
    assert "/no_think" not in off


@pytest.mark.parametrize(
    ("text", "stays"),
    [(text, text is templates.PARTS) for text, *_ in FOUND],
)
def test_earlier_thinking_is_left_out_as_the_template_wants(text: str, stays: bool) -> None:
    talk = [*opening("S"), question("One?"), thought("Hm, 41.", "41"), question("Two?")]
    shown = chat(text).render(talk)
    assert ("Hm, 41." in shown) is stays
    assert shown.index("One?") < shown.rindex("41") < shown.index("Two?")


def test_a_list_that_is_written_as_it_stands_is_no_text() -> None:
    listed = templates.OPENED.replace(
        "m.content.split('</think>')[-1]",
        "(m.content if m.content is string else m.content | tojson)",
    )
    assert chat(listed).thinking.form is Form.LEFT_OUT
