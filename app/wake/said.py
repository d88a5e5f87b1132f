"""What a conversation says, with the ids that its model gave, as bytes beside its caches.

Its text, tokenized again, may come out as other ids than those that were held.
"""

import json
from bisect import bisect_left
from itertools import pairwise

from models.text.tokenized_text import TokenizedText
from models.text.tokenizer import Tokenizer


def dump(said: TokenizedText | None, held: list[int]) -> bytes:
    """A text of which the first ids are held; b"" where none is known."""
    if said is None or said.ids[: len(held)] != held:
        return b""
    fields = {"text": said.text, "cuts": said.cuts, "after": said.ids[len(held) :]}
    return json.dumps(fields, separators=(",", ":")).encode()


def load(data: bytes, held: list[int], tokenizer: Tokenizer) -> TokenizedText | None:
    """The text that `dump` was given, or None where that was none."""
    try:
        fields = json.loads(data)
        text, ids = str(fields["text"]), [*held, *map(int, fields["after"])]
        cuts = [(int(at), int(count)) for at, count in fields["cuts"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    ends = [*cuts, (len(text), len(ids))]
    ordered = all(a[0] <= b[0] and a[1] <= b[1] for a, b in pairwise(ends)) and ends[0][0] == 0
    if not ordered or not all(0 <= each < tokenizer.vocab_size for each in ids):
        return None
    return TokenizedText(tokenizer=tokenizer, text=text, ids=ids, cuts=cuts)


def shared(said: TokenizedText, text: str) -> int:
    """Ids of what is said up to the last cut before which the two texts are the same."""
    same = bisect_left(said.cuts, True, key=lambda cut: text[: cut[0]] != said.text[: cut[0]])
    return said.cuts[same - 1][1] if same else 0
