"""Whether a rendered text shows what was said, also where its template spaces or escapes it anew.

Knows nothing of messages and of how templates are rendered.
"""

import html
import json
import re
from collections.abc import Iterable

_SWITCH = re.compile(r"/\w+")


def all_stand(said: Iterable[str], text: str, template: str) -> bool:
    """Whether all that was said stands in a text of this template, one after the other."""
    at = 0
    for words in map(str.strip, said):
        found = text.find(words, at)
        at = _end_changed(words, text, at, template) if found < 0 else found + len(words)
        if at < 0:
            return False
    return True


def _end_changed(said: str, text: str, start: int, template: str) -> int:
    """Where what was said ends, escaped or spaced anew by a template; -1 if nowhere."""
    quoted = (json.dumps(said, ensure_ascii=ascii_)[1:-1] for ascii_ in (False, True))
    # As jinja2's own filter writes quotes.
    escaped = html.escape(said).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")
    for form in (*quoted, escaped):
        at = text.find(form, start)
        if at >= 0:
            return at + len(form)
    # Switches that the template knows (/no_think) are for it to take away.
    switches = set(_SWITCH.findall(template))
    plain = _SWITCH.sub(lambda word: "" if word[0] in switches else word[0], said)
    at = start
    for word in re.findall(r"\w+", plain) or plain.split():
        at = text.find(word, at)
        if at < 0:
            return -1
        at += len(word)
    return at
