"""Thinking and calls of tools, told apart from answers, by models that say a given text."""

import json
from pathlib import Path
from typing import Any

import openai
import pytest

from app.options import Think
from app.serve.server_settings import ServerSettings
from kvcache import Backend, CacheConfig
from tests.app.serve.conftest import Served, serving
from tests.scripted_model import write_scripted
from tests.thinking_models import ALL, THOUGHT

CACHE = CacheConfig(backend=Backend.REFERENCE)
TOOLED = (
    "{% if tools %}{% for t in tools %}{{ t.function | tojson }}\n{% endfor %}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for tool_call in m.tool_calls or [] %}<tool_call>{{ tool_call.function.name }}"
    "{% set tool_call = tool_call.function %}{{ tool_call.name }}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NOW: Any = {
    "type": "function",
    "function": {
        "name": "now",
        "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}},
    },
}
ASKED: Any = [{"role": "user", "content": "Hi"}]


def asked(served: Served, **more: Any) -> Any:
    return served.client.chat.completions.create(
        model="", messages=ASKED, temperature=0, max_tokens=60, **more
    )


@pytest.mark.parametrize("name", sorted(set(ALL) - {"channels", "granite"}))
def test_thinking_is_told_apart(tmp_path: Path, name: str) -> None:
    path = ALL[name].write(tmp_path / "thinker.gguf")
    with serving(path, ServerSettings(cache=CACHE)) as served:
        answer = asked(served).choices[0].message
        assert answer.content.strip() == "Paris."
        assert answer.reasoning_content.strip() == THOUGHT
        pieces = [each.choices[0].delta for each in asked(served, stream=True) if each.choices]
        thought = "".join(each.model_extra.get("reasoning_content", "") for each in pieces)
        assert thought.strip() == THOUGHT
        assert "".join(each.content or "" for each in pieces).strip() == "Paris."
    with serving(path, ServerSettings(cache=CACHE, think=Think.HIDE)) as served:
        assert "reasoning_content" not in asked(served).choices[0].message.model_extra


def test_a_switch_has_a_model_not_think(tmp_path: Path) -> None:
    path = ALL["qwen"].write(tmp_path / "thinker.gguf")
    with serving(path, ServerSettings(cache=CACHE)) as served:
        long = asked(served).usage.prompt_tokens
        for more in (
            {"reasoning_effort": "none"},
            {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}},
        ):
            assert asked(served, **more).usage.prompt_tokens > long


def test_a_call_of_a_tool_is_parsed(tmp_path: Path) -> None:
    path = tmp_path / "tooled.gguf"
    call = b'\n{"name": "now", ', b'"arguments": {"zone": "UTC"}}'
    says = b"Well", b"<tool_call>", *call, b"</tool_call>"
    write_scripted(path, says, metadata={"tokenizer.chat_template": TOOLED}, context=2048)
    with serving(path, ServerSettings(cache=CACHE)) as served:
        choice = asked(served, tools=[NOW]).choices[0]
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Well")
        (made,) = choice.message.tool_calls
        assert made.function.name == "now"
        assert json.loads(made.function.arguments) == {"zone": "UTC"}
        chunks = list(asked(served, tools=[NOW], stream=True))
        calls = [one for each in chunks for one in each.choices[0].delta.tool_calls or ()]
        assert [one.function.name for one in calls] == ["now"]
        assert chunks[-1].choices[0].finish_reason == "tool_calls"
        result: Any = [
            *ASKED,
            {"role": "assistant", "content": None, "tool_calls": [made.model_dump()]},
            {"role": "tool", "tool_call_id": made.id, "content": "12:00"},
        ]
        more = served.client.chat.completions.create(model="", messages=result, max_tokens=1)
        assert more.usage is not None
        assert more.usage.prompt_tokens > asked(served).usage.prompt_tokens
        assert asked(served, tools=[NOW], tool_choice="none").usage.prompt_tokens == (
            asked(served).usage.prompt_tokens
        )
        bad = [{"function": {"name": "now", "arguments": "{"}}]
        result[1]["tool_calls"] = bad
        with pytest.raises(openai.BadRequestError, match='calls "now" with what is no JSON object'):
            served.client.chat.completions.create(model="", messages=result)
