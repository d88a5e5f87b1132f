"""The texts that are measured on: a part of ember's source folder, not of an install."""

from enum import Enum
from pathlib import Path

from kvcache.errors import EmberError, reason
from models.text.tokenizer import Tokenizer

FOLDER = Path(__file__).parents[3]


class Text(Enum):
    """Their files. No codec, and no table of bits by layer, was made with them.

    ACTS: Acts and Romans in the King James version.
    TECHNICAL: explanations, questions with answers and program text, as chats have them.
    """

    ACTS = "assets/kjv_acts_romans.txt"
    TECHNICAL = "assets/technical_english.txt"


def text_ids(
    tokenizer: Tokenizer, text: Text = Text.ACTS, *, add_special: bool = True
) -> list[int]:
    """The whole text. Raises EmberError where it is missing."""
    path = FOLDER / text.value
    try:
        found = path.read_text(encoding="utf-8")
    except OSError as error:
        raise EmberError(
            f"this section runs in ember's source folder only: {path}: {reason(error)}"
        ) from error
    return tokenizer.encode(found, add_special=add_special)
