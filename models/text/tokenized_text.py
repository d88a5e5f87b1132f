"""A text with its token ids, of which the beginning stays when the rest changes.

Knows nothing of messages or templates.
"""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Self

from models.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class TokenizedText:
    """A text and its ids. A value: every change makes a new one.

    cuts: places, as (characters, ids) before them, at which what comes before was tokenized
    without a look at what follows; the first is the beginning. kept: so many characters have
    the ids that they had before the last change.
    """

    tokenizer: Tokenizer
    text: str
    ids: list[int]
    cuts: list[tuple[int, int]]
    kept: int = 0

    @classmethod
    def of(cls, tokenizer: Tokenizer, text: str) -> Self:
        """A text as a prompt: with one bos token where the model wants it, never an eos."""
        made = cls(tokenizer=tokenizer, text="", ids=[], cuts=[(0, 0)]).then(text)
        bos = tokenizer.bos_id
        if not tokenizer.adds_bos or bos is None or made.ids[:1] == [bos]:
            return made
        cuts = [(at, count + 1) for at, count in made.cuts]
        return replace(made, ids=[bos, *made.ids], cuts=cuts)

    def then(self, text: str) -> Self:
        """With more text at its end, which is tokenized by itself."""
        ids, cuts, at = list(self.ids), list(self.cuts), len(self.text)
        for part in self.tokenizer.parts(text, after=ids[-1] if ids else None):
            ids += part.ids
            at += part.length
            if part.closes:
                cuts.append((at, len(ids)))
        return replace(self, text=self.text + text, ids=ids, cuts=cuts, kept=len(self.text))

    def spoken(self, text: str, ids: list[int]) -> Self:
        """With ids of a model's own at its end, and the text that they stand for."""
        at, count = len(self.text), len(self.ids)
        cuts = [*self.cuts, (at, count), (at + len(text), count + len(ids))]
        return replace(self, text=self.text + text, ids=self.ids + ids, cuts=cuts)

    def changed_to(self, text: str) -> Self:
        """Another text, tokenized from the last cut up to which it is the same.

        Where this one was made by `of` and `changed_to` alone, the ids are those of `of`.
        """
        same = bisect_left(self.cuts, True, key=lambda cut: text[: cut[0]] != self.text[: cut[0]])
        at, count = self.cuts[same - 1]
        if not at:
            return self.of(self.tokenizer, text)
        begun = replace(self, text=text[:at], ids=self.ids[:count], cuts=self.cuts[:same])
        return begun.then(text[at:])

    def ids_before(self, at: int) -> int:
        """How many ids stand for the first `at` characters; one that goes on behind them counts.

        Exact at a cut; elsewhere by the bytes of each id, which are not those of the text
        where the vocabulary lacks a character, or the next token takes the spaces before it.
        """
        after = bisect_right(self.cuts, at, key=itemgetter(0))
        begin, count = self.cuts[after - 1]
        end = self.cuts[after][1] if after < len(self.cuts) else len(self.ids)
        last = self.ids[count - 1] if count else None
        tokenized = self.tokenizer.left_after(last, self.text[begin:at])
        left = len(tokenized.encode(errors="surrogatepass"))
        for spelled in self.tokenizer.spellings(self.ids[count:end]):
            if left <= 0:
                break
            left -= len(spelled)
            count += 1
        return count
