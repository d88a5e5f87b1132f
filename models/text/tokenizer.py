"""Text to token ids and back, with the ids of the model's own tokenizer.

Where llama.cpp takes others on purpose (a damaged file, special tokens that overlap), its
are taken.

Knows nothing of messages, templates or streaming. Special tokens are cut out
of a text; what lies between them goes to the family's encoder.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Protocol

from kvcache.errors import EmberError, quoted
from kvcache.given import integers
from models.assumptions import Assumptions
from models.gguf.metadata import Metadata
from models.text.bpe import ByteLevelBPE, TextBPE
from models.text.pretokenizers import PRE_TOKENIZERS, PreTokenizer, Spelling, named, of_file
from models.text.sentencepiece import SentencePieceBPE
from models.text.special_tokens import SpecialTokens
from models.text.vocabulary import (
    HIDDEN,
    PREFIX,
    TokenizerModel,
    TokenType,
    Vocabulary,
    byte_value,
    text_bytes,
    tokenizer_model,
)

# All of Unicode's, as the library has it; llama.cpp's are those of ASCII.
_SPACES = (
    " \t\n\v\f\r\u0085\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009"
    "\u200a\u2028\u2029\u202f\u205f\u3000"
)
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_CUT_OUT = HIDDEN | {TokenType.USER_DEFINED}


@dataclass(frozen=True, kw_only=True)
class _SpaceTakers:
    """Special tokens that take the spaces after them, and before them too where `before`.

    sign: tokens by which such a vocabulary is known. none: those that take no spaces.
    """

    sign: frozenset[str]
    none: frozenset[str] = frozenset()
    before: bool = False


# Files do not say it. Of these models llama.cpp knows Phi-3, by its name.
_PHI_3 = _SpaceTakers(
    sign=frozenset({"<|end|>", "<|placeholder1|>"}),
    none=frozenset({"<unk>", "<s>", "<|endoftext|>"}),
)
_PHI_4_MINI = _SpaceTakers(
    sign=frozenset({"<|end|>", "<|user|>", "<|endofprompt|>"}),
    none=frozenset({"<|endoftext|>", "<|endofprompt|>"}),
)
_PHI_4 = _SpaceTakers(sign=frozenset({"<|im_sep|>", "<|dummy_87|>"}), before=True)


class _Encoder(Protocol):
    """What the families of tokenizers share."""

    adds_space_prefix: bool

    def encode(self, text: str, *, after_special: bool) -> list[int]: ...
    def piece_bytes(self, text: str) -> bytes: ...


@dataclass(frozen=True, kw_only=True)
class TextPart:
    """A special token in a text, or what lies between two of them.

    length: characters of the text. closes: it is a token that stands there whatever follows,
    so that the text may be cut after it: the ids of the halves, joined, are those of the whole.
    """

    length: int
    ids: list[int]
    closes: bool


class Tokenizer:
    """A GGUF file's tokenizer.

    notes: a sentence for each thing that was assumed where the file does not say.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        encoder: _Encoder,
        *,
        adds_bos: bool,
        adds_eos: bool,
        takes_after: frozenset[int],
        takes_before: frozenset[int],
        notes: tuple[str, ...],
    ) -> None:
        self._vocabulary = vocabulary
        self._encoder = encoder
        self.adds_bos = adds_bos
        self.adds_eos = adds_eos
        self.notes = notes
        self._always_parsed = SpecialTokens(vocabulary, frozenset({TokenType.USER_DEFINED}))
        self._parsed = SpecialTokens(vocabulary, _CUT_OUT)
        self._takes_after, self._takes_before = takes_after, takes_before
        self.special_ids = frozenset(
            index for index, kind in enumerate(vocabulary.types) if kind in HIDDEN
        )

    @classmethod
    def from_metadata(cls, metadata: Metadata, pretokenizer: str | None = None) -> "Tokenizer":
        """Build the tokenizer that a GGUF file describes.

        pretokenizer: llama.cpp's name of one, instead of that which the file names.

        Raises:
            GGUFError: the tokenizer is of an unsupported kind, or its keys are damaged.
            EmberError: no pre-tokenizer has the given name.
        """
        assumed = Assumptions()
        vocabulary = Vocabulary.from_metadata(metadata, assumed)
        asked = None if pretokenizer is None else named(pretokenizer)
        encoder: ByteLevelBPE | TextBPE | SentencePieceBPE
        if tokenizer_model(metadata) is TokenizerModel.SENTENCEPIECE:
            if asked:
                assumed.add("--pretokenizer", "of no use to this model, which has scores")
            encoder = SentencePieceBPE(vocabulary, metadata, assumed)
            adds_bos, needs_bos = True, False
        else:
            pre = asked or _pretokenizer(metadata, assumed)
            kind = ByteLevelBPE if pre.spelling is Spelling.BYTES else TextBPE
            encoder = kind(vocabulary, metadata, pre, assumed)
            adds_bos, needs_bos = pre.adds_bos, pre.needs_bos
        takes_after, takes_before = _space_takers(vocabulary)
        return cls(
            vocabulary,
            encoder,
            adds_bos=_adds(metadata, "bos", adds_bos, vocabulary.bos_id, assumed, needs=needs_bos),
            adds_eos=_adds(metadata, "eos", False, vocabulary.eos_id, assumed),
            takes_after=takes_after,
            takes_before=takes_before,
            notes=assumed.notes(),
        )

    @property
    def vocab_size(self) -> int:
        """How many tokens there are."""
        return len(self._vocabulary)

    @property
    def bos_id(self) -> int | None:
        """The token that opens a text."""
        return self._vocabulary.bos_id

    @property
    def eos_id(self) -> int | None:
        """The token that closes a text."""
        return self._vocabulary.eos_id

    @property
    def eog_ids(self) -> frozenset[int]:
        """Every token after which generation stops."""
        return self._vocabulary.eog_ids

    @property
    def adds_space_prefix(self) -> bool:
        """Whether encoding puts a space before a text, which decoding takes away."""
        return self._encoder.adds_space_prefix

    def id_of(self, text: str) -> int | None:
        """The id of the token whose text this is, whatever its type."""
        return self._vocabulary.ids.get(text)

    def encode(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        """The ids of a text.

        `add_special`: put the bos and eos tokens around it where the file asks for it, unless
        the text brings them (llama.cpp doubles them, and warns).
        `parse_special`: take a control token's text for the token; else it is plain text.
        User-defined tokens are always taken for themselves.
        """
        if not isinstance(text, str):
            raise EmberError(f"got text={quoted(text)}, expected a text to encode")
        parts = self.parts(text, parse_special=parse_special)
        ids = [id_ for part in parts for id_ in part.ids]
        if add_special and self.adds_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        if add_special and self.adds_eos and self.eos_id is not None and ids[-1:] != [self.eos_id]:
            ids.append(self.eos_id)
        return ids

    def parts(
        self, text: str, *, parse_special: bool = True, after: int | None = None
    ) -> Iterator[TextPart]:
        """A text, special token by special token, with what lies between; see `encode`.

        `after`: the id of what the text follows.
        """
        after_special = True
        special = self._parsed if parse_special else self._always_parsed
        found = special.cut_out_of(_LONE_SURROGATE.sub("\ufffd", text))
        for part, following in zip_longest(found, found[1:]):
            if isinstance(part, int):
                length = len(self._vocabulary.texts[part])
                yield TextPart(length=length, ids=[part], closes=special.stands_apart(part))
                after_special, after = True, part
                continue
            left = self.left_after(after, part)
            left = left.rstrip(_SPACES) if following in self._takes_before else left
            ids = self._encoder.encode(left, after_special=after_special) if left else []
            yield TextPart(length=len(part), ids=ids, closes=False)
            after_special, after = after_special and not left, after if not left else None

    def left_after(self, id_: int | None, text: str) -> str:
        """What of a text is tokenized after a token, which may take the spaces it begins with."""
        return text.lstrip(_SPACES) if id_ in self._takes_after else text

    def spellings(self, ids: Iterable[int]) -> Iterator[bytes]:
        """The bytes that each id stands for in the text whose ids they are."""
        after_special = True
        for id_ in ids:
            is_special = self._vocabulary.types[id_] in _CUT_OUT
            data = text_bytes(self.text(id_)) if is_special else self.token_bytes(id_)
            added = after_special and not is_special and self.adds_space_prefix
            yield data.removeprefix(b" ") if added else data
            after_special = is_special

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD.

        `skip_special`: leave control tokens out; else their text is written. Raises EmberError
        for what are no ids of the vocabulary.
        """
        ids = integers("ids", ids)
        if ids and max(ids) >= self.vocab_size:
            raise EmberError(f"got ids={quoted(ids)}, expected 0 to {self.vocab_size - 1}")
        data = b"".join(
            text_bytes(self.text(id_))
            if id_ in self.special_ids and not skip_special
            else self.token_bytes(id_)
            for id_ in ids
        )
        if self.adds_space_prefix:
            data = data.removeprefix(b" ")
        return data.decode(errors="replace")

    def token_bytes(self, id_: int) -> bytes:
        """The bytes that a token adds to a text; none for control tokens."""
        text = self.text(id_)
        match self._vocabulary.types[id_]:
            case TokenType.NORMAL:
                return self._encoder.piece_bytes(text)
            case TokenType.USER_DEFINED:
                return text_bytes(text)
            case TokenType.BYTE:
                return bytes([byte_value(text)])
            case _:
                return b""

    def piece(self, id_: int) -> str:
        r"""A token for display: control tokens by name, bytes that are no character as \xNN."""
        text = self.text(id_)
        data = text_bytes(text) if id_ in self.special_ids else self.token_bytes(id_)
        return data.decode(errors="backslashreplace")

    def text(self, id_: int) -> str:
        """A token as the vocabulary spells it. Raises `IndexError` outside the vocabulary."""
        if not 0 <= id_ < self.vocab_size:
            raise IndexError(f"token id {id_} is not in 0..{self.vocab_size - 1}")
        return self._vocabulary.texts[id_]


def _adds(
    metadata: Metadata,
    name: str,
    default: bool,
    id_: int | None,
    assumed: Assumptions,
    *,
    needs: bool = False,
) -> bool:
    """Whether the token that opens or closes a text is put there. needs: whatever the file says."""
    asked = metadata.get_bool(f"{PREFIX}add_{name}_token", default)
    if needs and not asked and id_ is not None:
        assumed.add(f"{PREFIX}add_{name}_token is false", "the model needs that token: it is put")
        return True
    if asked and id_ is None:
        assumed.add(f"{PREFIX}{name}_token_id is not there", "no such token is put around a text")
    return asked and id_ is not None


def _pretokenizer(metadata: Metadata, assumed: Assumptions) -> PreTokenizer:
    if tokenizer_model(metadata) is TokenizerModel.GEMMA4_BPE:
        return PRE_TOKENIZERS["gemma4"]
    return of_file(metadata, assumed)


def _space_takers(vocabulary: Vocabulary) -> tuple[frozenset[int], frozenset[int]]:
    """Ids of the special tokens that take the spaces after them, and before them."""
    special = dict(vocabulary.of_type(_CUT_OUT))
    for takers in (_PHI_3, _PHI_4_MINI, _PHI_4):
        if special.keys() >= takers.sign:
            ids = frozenset(id_ for text, id_ in special.items() if text not in takers.none)
            return ids, ids if takers.before else frozenset()
    return frozenset(), frozenset()
