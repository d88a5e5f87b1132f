"""ChatTemplate: llama.cpp's prompts on SmolLM2, templates of every kind."""

import re
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from models.errors import ChatTemplateError, RenderStoppedError
from models.gguf.metadata import Metadata, MetadataValue
from models.text.builtin_templates import TemplateSource, TemplateText
from models.text.chat_template import ChatTemplate
from models.text.messages import Message, Role, conversation, opening
from models.text.template_process import TemplateLimits, TemplateProcess
from models.text.tokenizer import Tokenizer
from models.text.vocabulary import TokenType
from tests.models.text.vocabularies import Keys, byte_level, metadata_of, truth

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


@pytest.fixture(scope="module")
def process() -> TemplateProcess:
    return TemplateProcess(TemplateLimits(cpu_seconds=0.5))


Make = Callable[..., ChatTemplate]


@pytest.fixture
def make(tokenizer: Tokenizer, process: TemplateProcess) -> Make:
    """A template, as a file or the user brings it, for a vocabulary of ChatML."""

    def made(text: str, source: TemplateSource = TemplateSource.FILE) -> ChatTemplate:
        name = "the model's chat template" if source is TemplateSource.FILE else "mine.jinja"
        brought = TemplateText(source=source, text=text, name=name)
        return ChatTemplate(brought, tokenizer, otherwise=TemplateSource.CHATML, process=process)

    return made


def user(*texts: str) -> list[Message]:
    """Questions with an answer between each two."""
    answer = Message(role=Role.ASSISTANT, content="Yes.")
    turns = [turn for text in texts for turn in (Message(role=Role.USER, content=text), answer)]
    return turns[:-1]


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


def test_one_bos_and_no_eos() -> None:
    adding = Tokenizer.from_metadata(
        byte_level(special=CONTROL, changes=IDS | {"add_bos_token": True, "add_eos_token": True})
    )
    expected = [256, *adding.encode("Hi", add_special=False)]
    for text in ("{{ bos_token }}{{ messages[-1].content }}", "{{ messages[-1].content }}"):
        body = "{% for m in messages[:-1] %}{{ m.content }}{% endfor %}" + text
        keys = Metadata({"tokenizer.chat_template": body})
        assert ChatTemplate.from_metadata(keys, adding).encode(conversation("Hi")) == expected


def test_control_tokens_of_the_template_are_parsed(make: Make, tokenizer: Tokenizer) -> None:
    chat = make("{% for m in messages %}<|im_start|>{{ m['content'] }}{% endfor %}")
    assert chat.encode(conversation("a")) == [
        tokenizer.id_of("<|im_start|>"),
        tokenizer.id_of("a"),
    ]


EACH = "{% for m in messages %}{{ m.role[0] + '=' + m.content + ';' }}{% endfor %}"
SHOWN = "s=Be brief.;u= Hi ;a=Hello;u=Bye;"
STRUNG = "Be brief. Hi HelloBye"
# What templates of the field are written with, and what each makes of TALK.
CONSTRUCTS = {
    EACH: SHOWN,
    EACH + "{% if add_generation_prompt %}a={% endif %}": SHOWN + "a=",
    EACH + "{% if tools %}{{ tools[0] }}{% endif %}{{ tools is none }}": SHOWN + "True",
    EACH + "{% if enable_thinking is defined and not enable_thinking %}no{% endif %}": SHOWN,
    EACH + "{% if date is not defined %}{{ strftime_now('%Y')[:1] }}{% endif %}": SHOWN + "2",
    EACH + "{% if messages[0]['role'] == 'system' %}!{% endif %}": SHOWN + "!",
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% set x = 1 %}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{{ x }}": STRUNG,
    "{% for m in messages %}{% generation %}{% if loop.last %}{% break %}{% endif %}"
    "{% endgeneration %}{{ m.content }}{% endfor %}{{ messages[-1].content }}": STRUNG,
    "{% for m in messages %}{% if m.tool_calls %}{% continue %}{% endif %}{{ m.content }}"
    "{% endfor %}": STRUNG,
    "{% set ns = namespace(all='') %}{% for m in messages %}"
    "{% set ns.all = ns.all ~ m.content.strip() ~ '|' %}{% endfor %}"
    "{{ ns.all }}": "Be brief.|Hi|Hello|Bye|",
    "{% macro say(m, end='') %}{{ m.content | trim }}{{ caller() if caller }}{{ end }}"
    "{% endmacro %}{% for m in messages %}{% call say(m, end='.') %}!{% endcall %}"
    "{% endfor %}": "Be brief.!.Hi!.Hello!.Bye!.",
    "{% filter upper %}x{% endfilter %}" + EACH: "X" + SHOWN,
    "{% for m in messages %}{{ m | tojson }}{% endfor %}": (
        '{"role": "system", "content": "Be brief."}{"role": "user", "content": " Hi "}'
        '{"role": "assistant", "content": "Hello"}{"role": "user", "content": "Bye"}'
    ),
    "{{ messages | map(attribute='content') | join('/') }}": "Be brief./ Hi /Hello/Bye",
    "{% for m in messages | selectattr('role', 'ne', 'tool') | list %}{{ m.get('content') }}"
    "{% endfor %}": STRUNG,
    "{% for m in messages %}{% for key, value in m.items() if key == 'content' %}{{ value }}"
    "{% endfor %}{% endfor %}": STRUNG,
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}"
    "{% elif m.content is iterable and m.content is not mapping %}{{ m.content[0].text }}"
    "{% endif %}{% endfor %}": STRUNG,
    "{% for m in messages %}{{ loop.previtem.role[0] if loop.previtem is defined else '-' }}"
    "{{ m.content.split('-')[-1].lstrip() }}{{ '+' * loop.revindex0 }}"
    "{% endfor %}": "-Be brief.+++sHi ++uHello+aBye",
    "{%- for m in messages -%}\n  {%- if true %}\n    {% if m %}\n{{ m.content }}\n"
    "    {% endif %}\n  {%- endif %}\n{%- endfor -%}": "Be brief.\n Hi \nHello\nBye\n",
    "{% set seen = [] %}{% do seen %}" + EACH: SHOWN,
    # Tools are looped over without a look whether there are any.
    "{% for tool in tools %}{{ tool }}{% endfor %}{{ functions }}" + EACH: SHOWN,
}


@pytest.mark.parametrize("text", CONSTRUCTS)
def test_constructs_of_the_field(make: Make, text: str) -> None:
    chat = make(text)
    assert chat.render(TALK) == CONSTRUCTS[text]
    assert (chat.source, chat.take_notes()) == (TemplateSource.FILE, [])


PARTS = {
    "looped": "{% for m in messages %}{{ m.role }}:{% for part in m.content %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %};{% endfor %}",
    "first": "{% for m in messages %}{{ m.role }}:{{ m.content[0]['text'] }};{% endfor %}",
    "kinds": "{% for m in messages %}{{ m.role }}:{% for part in m.content | "
    "selectattr('type', 'equalto', 'text') %}{{ part.text }}{% endfor %};{% endfor %}",
}


@pytest.mark.parametrize("kind", PARTS)
def test_templates_that_read_parts_get_parts(make: Make, kind: str) -> None:
    chat = make(PARTS[kind])
    assert chat.render(TALK) == "system:Be brief.;user: Hi ;assistant:Hello;user:Bye;"
    assert (chat.source, chat.take_notes()) == (TemplateSource.FILE, [])


def test_a_system_prompt_without_a_place_goes_before_the_first_question(make: Make) -> None:
    refuses = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + EACH
    )
    drops = "{% for m in messages if m.role != 'system' %}{{ m.content + ';' }}{% endfor %}"
    told = [
        "the model's chat template has no place for a system prompt: "
        "it goes before the first question"
    ]
    for text, shown in (
        (refuses, "u=Be brief.\n\n Hi ;a=Hello;u=Bye;"),
        (drops, "Be brief.\n\n Hi ;Hello;Bye;"),
    ):
        chat = make(text)
        chat.render(TALK[1:])
        assert chat.take_notes() == []
        assert chat.render(TALK) == chat.render(TALK) == shown
        assert chat.take_notes() == told
        assert "Be brief." in chat.render(TALK[:1])


def test_neighbours_of_one_role_are_joined_where_a_template_refuses_them(make: Make) -> None:
    text = (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Roles must alternate') }}{% endif %}{{ m.content + ';' }}{% endfor %}"
    )
    twice = [TALK[1], *TALK[1:]]
    assert make(text).render(twice) == " Hi \n\n Hi ;Hello;Bye;"
    assert make(EACH).render(twice) == "u= Hi ;u= Hi ;a=Hello;u=Bye;"
    assert make(text).render(TALK) == "Be brief.\n\n Hi ;Hello;Bye;"


# What cannot be used, and what is said of it.
USELESS = {
    "{% if %}": "is no valid jinja2 template: Expected an expression",
    "{% for x in y %}" * 30 + "{% endfor %}" * 30: "is no valid jinja2 template: too many",
    "(" * 300_000: "has 300000 characters, expected at most 262144",
    "{% unknown %}": "is no valid jinja2 template: Encountered unknown tag 'unknown'",
    "{{ messages[0].content | unknown }}": "is no valid jinja2 template: No filter named",
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
    "{{ cycler() }}": "failed: at least one item",
    "{{ messages | string | truncate(1, end='longer') }}": "failed: expected length >= 6, got 1",
    "{{ messages | groupby(1) }}": "does not show what was said",
    "{{ messages | sum }}": "failed: unsupported operand",
    "{{ 'x' | wordwrap(0) }}": "failed: ",
    "{{ 2 ** (2 ** 36) }}": "was stopped: it took more than 0.5 seconds of processor time",
    "{{ 'x' | center(10 ** 10) }}": "was stopped: it took more than 512 MiB of memory",
    "{% for x in range(9999) %}{{ 'x' * 999 }}{% endfor %}": "was stopped: it wrote more than",
    # No question is shown, or a part of it.
    "How are you?": "does not show what was said",
    "{% for m in messages %}{{ m.content[:3] }}{% endfor %}": "does not show what was said",
}


@pytest.mark.parametrize("text", USELESS, ids=lambda text: text[:40])
def test_in_place_of_a_useless_template_a_built_in_one_is_taken(make: Make, text: str) -> None:
    chat = make(text)
    shown = chat.render(user("Hi"), add_generation_prompt=False)
    assert shown == "<|im_start|>user\nHi<|im_end|>\n"
    assert chat.source is TemplateSource.CHATML
    (note,) = chat.take_notes()
    assert re.fullmatch(
        f"the model's chat template {USELESS[text]}.*; taken instead: built-in ChatML "
        r"\(--chat-template takes another\)",
        note,
    )
    assert len(note) < 400
    chat.render(user("Hi"))
    assert chat.take_notes() == []


FOR_ONE = {
    "{{ messages[0].content }}": "does not show what was said",
    "{{ messages[-1].content }}": "does not show what was said",
    "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}": "does not show",
    "{{ raise_exception('one only') if messages[1:] }}{{ messages[0].content }}": "refuses: one",
}


@pytest.mark.parametrize("text", FOR_ONE)
def test_a_template_for_one_question_is_used_for_one(make: Make, text: str) -> None:
    chat = make(text)
    assert chat.render(user("Hi")) == "Hi"
    assert chat.render(conversation("Hi", system="Be brief.")) == "Be brief.\n\nHi"
    assert (chat.source, len(chat.take_notes())) == (TemplateSource.FILE, 1)
    assert chat.render(user("Hi", "Bye")).startswith("<|im_start|>user\nHi<|im_end|>\n")
    (note,) = chat.take_notes()
    assert note.startswith(f"the model's chat template {FOR_ONE[text]}")
    assert note.endswith("taken instead: built-in ChatML (--chat-template takes another)")
    with pytest.raises(ChatTemplateError, match=r"^mine\.jinja (does not show|refuses)"):
        make(text, TemplateSource.GIVEN).render(user("Hi", "Bye"))


def test_a_template_that_the_user_gave_is_not_replaced(make: Make) -> None:
    for text in ("{% if %}", "How are you?", "{{ 2 ** (2 ** 36) }}"):
        with pytest.raises(ChatTemplateError, match=r"^mine\.jinja (is no|does not|was stopped)"):
            make(text, TemplateSource.GIVEN).render(user("Hi"))
    assert make(EACH, TemplateSource.GIVEN).render(user("Hi")) == "u=Hi;"


LATER = {
    "{{ raise_exception('too\\nmuch') }}": "refuses: too much",
    "{{ cycler() }}": "failed: at least one item",
    "{{ (messages | length) ** (2 ** 36) }}": "was stopped: it took more than 0.5 seconds",
}


@pytest.mark.parametrize("text", LATER)
def test_what_a_good_template_does_later_is_an_error(make: Make, text: str) -> None:
    chat = make("{% if messages | length > 4 %}" + text + "{% endif %}" + EACH)
    chat.render(user("a", "b"))
    with pytest.raises(ChatTemplateError) as caught:
        chat.render(user("a", "b", "c"))
    assert str(caught.value).startswith(f"the model's chat template {LATER[text]}")
    assert "\n" not in str(caught.value)
    assert (chat.source, chat.take_notes()) == (TemplateSource.FILE, [])
    assert chat.render(user("a")) == "u=a;"


CHANGES = (
    "m.content.strip()",
    "m.content | e",
    "m.content | tojson",
    "m.content.split() | join('_')",
)


@pytest.mark.parametrize("change", CHANGES)
@given(said=st.text(min_size=1, max_size=40).filter(lambda said: said.strip()))
@example(said=' <b>"Wo?"</b>\n\n\tÜber "die" Brücke & zurück! ')
@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_words_may_be_trimmed_escaped_and_spaced_anew(make: Make, change: str, said: str) -> None:
    chat = make("{% for m in messages %}{{ " + change + " }};{% endfor %}")
    chat.render(user("first", said))
    assert chat.take_notes() == []


def test_switches_of_a_template_are_for_it_to_take_away(make: Make) -> None:
    chat = make(
        "{% for m in messages %}{{ m.content.replace('/no_think', '').replace('b', '') }};"
        "{% endfor %}"
    )
    assert chat.render(user("Why? /no_think", "/no_think")) == "Why? ;Yes.;;"
    assert chat.take_notes() == []
    assert "/think" in chat.render(user("/think b"))
    assert chat.source is TemplateSource.CHATML


@pytest.mark.parametrize("said", ["Where is /secret now?", "???", "a b c"])
def test_a_question_that_a_template_loses_is_asked_by_a_built_in_one(make: Make, said: str) -> None:
    lost = "'secret' in m.content or m.content == '???' or m.content == 'a b c'"
    text = "{% for m in messages %}{{ '' if " + lost + " else m.content }};{% endfor %}"
    chat = make(text)
    assert chat.render(user("Hi")) == "Hi;"
    assert said in chat.render(user("Hi", said))
    (note,) = chat.take_notes()
    assert note.startswith("the model's chat template does not show all that was asked; taken")
    # For good: a conversation does not change its format to and fro.
    assert chat.render(user("Hi")).startswith("<|im_start|>user\nHi<|im_end|>")
    assert chat.source is TemplateSource.CHATML


def test_rendering_is_stopped_by_a_flag(make: Make) -> None:
    cancel = Event()
    cancel.set()
    chat = make(EACH)
    with pytest.raises(RenderStoppedError):
        chat.render(TALK, cancel=cancel)
    assert chat.render(TALK) == SHOWN


KEY = "tokenizer.chat_template"
ELSEWHERE: dict[str, tuple[dict[str, MetadataValue], TemplateSource]] = {
    "default": ({f"{KEY}.default": EACH}, TemplateSource.FILE),
    "empty": ({KEY: " \n"}, TemplateSource.CHATML),
    "name": ({KEY: "llama3"}, TemplateSource.LLAMA3),
    "no text": ({KEY: ["x"]}, TemplateSource.CHATML),
}


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_what_a_file_may_hold_in_place_of_a_template(tokenizer: Tokenizer, kind: str) -> None:
    keys, source = ELSEWHERE[kind]
    chat = ChatTemplate.from_metadata(Metadata(keys), tokenizer)
    assert "Hi" in chat.render(user("Hi"))
    assert chat.source is source
    told = [
        "the model's chat template is no text; taken instead: built-in ChatML "
        "(--chat-template takes another)"
    ]
    assert chat.take_notes() == (told if kind == "no text" else [])


def test_a_turn_of_nobody_is_refused() -> None:
    assert Role("user") is Role.USER
    with pytest.raises(ValueError, match=r"got a message of role 'king', expected one of system, "):
        Role("king")


TOOLED = (
    "{% if tools %}{% for t in tools %}{{ t.function | tojson }};{% endfor %}{% endif %}"
    "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ '!' + c.function.name }}"
    "{{ c.function.arguments | tojson }}{% endfor %}"
    "{{ m.role[0] + '=' + m.content + ';' }}{% endfor %}"
)
NOW = {"type": "function", "function": {"name": "now", "parameters": {}}}
CALL = {"type": "function", "function": {"name": "now", "arguments": {"zone": "UTC"}}}
CALLED = [
    TALK[1],
    Message(role=Role.ASSISTANT, content="", more={"tool_calls": [CALL]}),
    Message(role=Role.TOOL, content="12:00", more={"tool_call_id": "1"}),
]


def test_tools_and_their_results_are_shown_where_a_template_has_a_place_for_them(
    make: Make,
) -> None:
    chat = make(TOOLED)
    told = '{"name": "now", "parameters": {}};'
    assert chat.render(TALK[1:2], tools=[NOW]) == f"{told}u= Hi ;"
    assert chat.render(CALLED, tools=[NOW]) == f'{told}u= Hi ;!now{{"zone": "UTC"}}a=;t=12:00;'
    assert chat.render(TALK[1:2]) == "u= Hi ;"
    without = make(EACH)
    for messages, tools in ((TALK, [NOW]), (CALLED, [])):
        with pytest.raises(ChatTemplateError, match=r"has no place for tools: no tools are called"):
            without.render(messages, tools=tools)
