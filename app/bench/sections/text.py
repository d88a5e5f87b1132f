"""The text that quality is measured on: a part of ember's source folder, not of an install."""

from pathlib import Path

from kvcache.errors import EmberError, reason
from models.text.tokenizer import Tokenizer

TEXT = Path(__file__).parents[3] / "assets" / "kjv_acts_romans.txt"


def text_ids(tokenizer: Tokenizer, *, add_special: bool = True) -> list[int]:
    """The whole text. Raises EmberError where it is missing."""
    try:
        text = TEXT.read_text(encoding="utf-8")
    except OSError as error:
        raise EmberError(
            f"this section runs in ember's source folder only: {TEXT}: {reason(error)}"
        ) from error
    return tokenizer.encode(text, add_special=add_special)
