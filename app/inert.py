"""Makes foreign text harmless to a terminal: what cannot be seen becomes visible.

Escape sequences, control characters and direction overrides lose their power
and keep their place. Knows no stream, no markup and no widget.
"""

import re

_CONTROLS = {code: chr(0x2400 + code) for code in range(0x20)} | {0x7F: "␡"}
_CONTROLS |= dict.fromkeys(range(0x80, 0xA0), "\ufffd")
# Direction marks, overrides and isolates can make text read as other text.
_DIRECTION = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
# Lone surrogates cannot be written to a terminal at all.
_NEVER = dict.fromkeys((*_DIRECTION, *range(0xD800, 0xE000)), "\ufffd")
_SEPARATORS = (0x2028, 0x2029)
_MANY_LINES = _CONTROLS | _NEVER | dict.fromkeys(_SEPARATORS, "\n")
del _MANY_LINES[ord("\n")], _MANY_LINES[ord("\t")]
# Two names must not look like one: soft hyphens, spaces and marks of no width, tags.
_UNSEEN = (0xAD, 0x200B, *range(0x2060, 0x2065), 0xFEFF, *range(0xFFF9, 0xFFFC))
_UNSEEN = (*_UNSEEN, *range(0xE0000, 0xE0080))
_ONE_LINE = _CONTROLS | _NEVER | dict.fromkeys((*_SEPARATORS, *_UNSEEN), "\ufffd")
_IN_JSON = {
    code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), *_SEPARATORS, *_NEVER, 0xAD, 0xFEFF)
}
_LINE_END = re.compile("\r\n")


def inert(text: str) -> str:
    """`text` with nothing left in it that a terminal or a renderer would obey.

    Line ends are line feeds afterwards, and tabs stay tabs.
    """
    return _LINE_END.sub("\n", text).translate(_MANY_LINES)


def inert_line(text: object) -> str:
    """As `inert`, in one line: a name, a value or an error. Line feeds and tabs become visible."""
    return str(text).translate(_ONE_LINE)


def inert_json(text: str) -> str:
    """JSON that says the same without a character that `inert` would change."""
    return text.translate(_IN_JSON)
