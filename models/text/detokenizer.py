"""Ids to text while they come, without ever showing half a character.

Knows nothing of how ids are made. What `add` and `finish` return, joined, is
what `Tokenizer.decode` gives for all the ids at once.
"""

import codecs

from models.text.tokenizer import Tokenizer


class StreamingDetokenizer:
    """Decoder of one answer.

    A character whose bytes span tokens is held back until its last byte has come;
    bytes that are not UTF-8 become U+FFFD.
    """

    def __init__(self, tokenizer: Tokenizer, *, continuing: bool = False) -> None:
        """`continuing`: the ids go on from earlier text, so a space they open with stays."""
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._drops_space = tokenizer.adds_space_prefix and not continuing

    def add(self, id_: int) -> str:
        """The text that this token completes; may be empty."""
        data = self._tokenizer.token_bytes(id_)
        if data and self._drops_space:
            data = data.removeprefix(b" ")
            self._drops_space = False
        return self._decoder.decode(data)

    def spell(self, id_: int) -> str:
        """As `add`, for a control token whose name is to be read."""
        return self._decoder.decode(self._tokenizer.text(id_).encode(errors="replace"))

    def finish(self) -> str:
        """What is still held back, as U+FFFD."""
        return self._decoder.decode(b"", final=True)
