"""Chat templates that do with thinking what those of the field do, each in a few lines."""

_TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
_HEAD = "{% if add_generation_prompt %}<|im_start|>assistant\n"

# Qwen3: a switch; earlier thinking is known, and shown at the end of a conversation alone.
QWEN = (
    "{% for m in messages %}{% if loop.last and m.reasoning_content %}<|im_start|>{{ m.role }}\n"
    "<think>\n{{ m.reasoning_content }}\n</think>\n\n{{ m.content }}<|im_end|>\n{% else %}"
    + _TURN
    + "{% endif %}{% endfor %}"
    + _HEAD
    + "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# R1: no switch; the head of an answer has opened thinking.
OPENED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}"
    "<|im_end|>\n{% endfor %}" + _HEAD + "<think>\n{% endif %}"
)
# SmolLM3: a switch that stands in the system prompt; earlier answers are shown as they are.
SWITCHED = (
    "{% set mode = '/no_think' if enable_thinking is false else '/think' %}"
    "<|im_start|>system\nReasoning Mode: {{ mode }}<|im_end|>\n{% for m in messages %}"
    + _TURN
    + "{% endfor %}"
    + _HEAD
    + "{% if mode == '/no_think' %}<think>\n\n</think>\n{% endif %}{% endif %}"
)
# Nemotron: a word of the system prompt is the switch.
WORDED = (
    "{% set ns = namespace(think=true) %}{% for m in messages %}"
    "{% if '/no_think' in m.content %}{% set ns.think = false %}{% endif %}"
    "<|im_start|>{{ m.role }}\n"
    "{{ m.content.replace('/no_think', '').replace('/think', '').strip() }}<|im_end|>\n"
    "{% endfor %}" + _HEAD + "{{ '<think>\n' if ns.think else '<think></think>' }}{% endif %}"
)
# Ministral: thinking is a part of an answer, and stays.
PARTS = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
    "{% elif m.role == 'system' %}[SYSTEM]{{ m.content }}[/SYSTEM]{% elif m.content is string %}"
    "{{ m.content }}{{ eos_token }}{% else %}{% for b in m.content %}{% if b.type == 'text' %}"
    "{{ b.text }}{% else %}[THINK]{{ b.thinking }}[/THINK]{% endif %}{% endfor %}{{ eos_token }}"
    "{% endif %}{% endfor %}"
)
# gpt-oss: channels; marks in what was said are refused.
CHANNELS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% if '<|channel|>' in m.content %}{{ raise_exception('marks') }}{% endif %}"
    "{% if m.thinking and loop.last %}<|start|>assistant<|channel|>analysis<|message|>"
    "{{ m.thinking }}<|end|>{% endif %}<|start|>assistant<|channel|>final<|message|>"
    "{{ m.content }}<|end|>{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
# Granite 3.3: off unless switched on; the answer has marks too.
GRANITE = (
    "{% if thinking %}Write your thoughts between <think></think> and your response between "
    "<response></response>.{% endif %}{% for m in messages %}" + _TURN + "{% endfor %}"
    "" + _HEAD + "{% endif %}"
)
