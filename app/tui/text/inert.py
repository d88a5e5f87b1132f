"""Makes foreign text harmless to a terminal: what cannot be seen becomes visible.

Escape sequences, control characters and direction overrides lose their power
and keep their place; line ends are line feeds afterwards, and tabs stay tabs.
"""

import re

_REPLACED = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"}
_REPLACED |= {0x7F: "␡"}
_REPLACED |= dict.fromkeys(range(0x80, 0xA0), "\ufffd")
_REPLACED |= dict.fromkeys((0x2028, 0x2029), "\n")
# Direction marks, overrides and isolates can make text read as other text.
_DIRECTION = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_REPLACED |= dict.fromkeys(_DIRECTION, "\ufffd")
# Lone surrogates cannot be written to a terminal at all.
_SURROGATES = re.compile("[\ud800-\udfff]")
_LINE_END = re.compile("\r\n")


def inert(text: str) -> str:
    """`text` with nothing left in it that a terminal or a renderer would obey."""
    text = _LINE_END.sub("\n", text)
    return _SURROGATES.sub("\ufffd", text.translate(_REPLACED))
