"""Chats as files for people."""

import pytest
from markdown_it import MarkdownIt

from app.sessions.chat import Chat, ChatMessage, Thought
from app.sessions.export import as_markdown
from models.text.messages import Role


@pytest.mark.parametrize("text", ["Hm:\n```py\nx", "~~~", "<!-- Hm", "</details>\n\n<pre>"])
def test_thinking_ends_with_its_fold_whatever_it_breaks_off_in(text: str) -> None:
    thought = Thought(text=text, tokens=7, seconds=2.0)
    answer = ChatMessage(role=Role.ASSISTANT, text="Paris.", thought=thought)
    shown = as_markdown(Chat(messages=[answer]))
    *_, folded_end, opening, said, closing = MarkdownIt().parse(shown)
    assert folded_end.content == "</details>\n"
    assert (opening.type, said.content, closing.type) == (
        "paragraph_open",
        "Paris.",
        "paragraph_close",
    )
    assert shown.count("</details>") == 1
