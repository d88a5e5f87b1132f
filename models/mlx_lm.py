"""A file's tokenizer and chat template as mlx-lm's functions take them.

    for answer in stream_generate(loaded.model, tokenizer_of(loaded), prompt): ...

mlx-lm wraps the tokenizers of transformers and calls them by their names; `_Tokenizer` has
those that it calls. Importing this imports mlx-lm.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from importlib import import_module
from typing import Any, overload

from mlx_lm.tokenizer_utils import StreamingDetokenizer as Detokenizer
from mlx_lm.tokenizer_utils import TokenizerWrapper, _infer_tool_parser

from models.loader import LoadedModel
from models.text.chat_template import ChatTemplate
from models.text.detokenizer import StreamingDetokenizer
from models.text.messages import Message, Role
from models.text.thinking import thinking_marks
from models.text.tokenizer import Tokenizer

# Of a message beside what it says.
_OF_TOOLS = ("tool_calls", "tool_call_id", "name")
# What mlx-lm must know of our caches before it works with them.
import_module("kvcache.mlx_lm")


def tokenizer_of(loaded: LoadedModel) -> TokenizerWrapper:
    """What `stream_generate`, `generate`, `batch_generate` and the server take.

    Ids, texts and chat prompts are those of `loaded.tokenizer` and `loaded.template`; every
    token after which generation stops is one of `eos_token_ids`.
    """
    return _Wrapper(_Tokenizer(loaded.tokenizer, loaded.template))


class _Wrapper(TokenizerWrapper):
    """mlx-lm's, that knows the marks of thinking by the file's family too."""

    def __init__(self, made: "_Tokenizer") -> None:
        ends = made.of_file.eog_ids
        super().__init__(made, _Detokenizer, eos_token_ids=ends, **_tool_calls(made))
        marks = thinking_marks(made.chat_template, made.of_file)
        if marks is not None and not self.has_thinking:
            self._think_start, self._think_end = marks.opens[0], marks.closes[0]
            self._think_start_tokens, self._think_end_tokens = (
                tuple(made.encode(mark, add_special_tokens=False))
                for mark in (self._think_start, self._think_end)
            )
        made.spelled = made.of_file.special_ids & {
            *(self._think_start_tokens or ()),
            *(self._think_end_tokens or ()),
            *(self._tool_call_start_tokens or ()),
            *(self._tool_call_end_tokens or ()),
        }


def _tool_calls(made: "_Tokenizer") -> dict[str, Any]:
    """How calls of tools are told from text, where mlx-lm has a parser for the template."""
    name = _infer_tool_parser(made)
    if name is None:
        return {}
    parser = import_module(f"mlx_lm.tool_parsers.{name}")
    return {
        "tool_call_start": parser.tool_call_start,
        "tool_call_end": parser.tool_call_end,
        "tool_parser": parser.parse_tool_call,
    }


class _Tokenizer:
    """By the names of transformers. spelled: control tokens that are told as text."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self.of_file, self._template = tokenizer, template
        self.spelled: Set[int] = frozenset()

    def __len__(self) -> int:
        return self.of_file.vocab_size

    # -- text --

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The ids of a text."""
        return self.of_file.encode(text, add_special=add_special_tokens)

    def decode(self, ids: int | Iterable[int], *, skip_special_tokens: bool = False) -> str:
        """The text of ids."""
        every = [ids] if isinstance(ids, int) else map(int, ids)
        return self.of_file.decode(every, skip_special=skip_special_tokens)

    # -- tokens --

    @property
    def vocab_size(self) -> int:
        """How many tokens there are."""
        return self.of_file.vocab_size

    def get_vocab(self) -> dict[str, int]:
        """Ids by text."""
        return {text: id_ for id_, text in reversed(list(enumerate(self._texts())))}

    @overload
    def convert_ids_to_tokens(self, ids: int) -> str: ...
    @overload
    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]: ...
    def convert_ids_to_tokens(self, ids: int | Sequence[int]) -> str | list[str]:
        """Tokens as the vocabulary spells them."""
        if isinstance(ids, int):
            return self.of_file.text(ids)
        return [self.of_file.text(id_) for id_ in ids]

    def convert_tokens_to_ids(self, token: str) -> int | None:
        """The id of a token's text; None where there is none."""
        return self.of_file.id_of(token)

    @property
    def bos_token_id(self) -> int | None:
        """The token that opens a text."""
        return self.of_file.bos_id

    @property
    def bos_token(self) -> str | None:
        """Its text."""
        return self._text(self.of_file.bos_id)

    @property
    def eos_token_id(self) -> int | None:
        """The token that closes a text."""
        return self.of_file.eos_id

    @property
    def eos_token(self) -> str | None:
        """Its text."""
        return self._text(self.of_file.eos_id)

    # -- chats --

    @property
    def chat_template(self) -> str:
        """The template that renders chats."""
        return self._template.text

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        *,
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        enable_thinking: bool | None = None,
        **_other: Any,
    ) -> str | list[int]:
        """A chat as ids, or as text.

        Raises ChatTemplateError, as for tools where the template has no place for them.
        """
        messages = [_message(each) for each in conversation]
        make = self._template.encode if tokenize else self._template.render
        return make(
            messages,
            add_generation_prompt=add_generation_prompt,
            think=enable_thinking,
            tools=tools or (),
        )

    def _texts(self) -> Iterable[str]:
        return map(self.of_file.text, range(len(self)))

    def _text(self, id_: int | None) -> str | None:
        return None if id_ is None else self.of_file.text(id_)


class _Detokenizer(Detokenizer):
    """Text while it comes, each character once it is whole."""

    def __init__(self, tokenizer: _Tokenizer) -> None:
        self._made = tokenizer
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.text, self.offset = "", 0
        self.tokens: list[int] = []
        self._streaming = StreamingDetokenizer(self._made.of_file)

    def add_token(self, token: int) -> None:
        """Take a token."""
        self.tokens.append(token)
        is_spelled = token in self._made.spelled
        self.text += self._streaming.spell(token) if is_spelled else self._streaming.add(token)

    def finalize(self) -> None:
        """What is held back still, as U+FFFD."""
        self.text += self._streaming.finish()


def _message(said: Mapping[str, Any]) -> Message:
    """One turn, as chat servers name its parts. Raises ValueError for an unknown role."""
    content, thought = said.get("content"), said.get("reasoning_content")
    more = {key: said[key] for key in _OF_TOOLS if key in said}
    return Message(
        role=Role(said["role"]), content=content or "", thinking=thought or "", more=more
    )
