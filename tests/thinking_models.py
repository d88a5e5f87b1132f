"""Scripted models that think before they answer, each in its family's way."""

from dataclasses import dataclass, field
from pathlib import Path

from tests import thinking_templates as templates
from tests.scripted_model import write_scripted

# Line ends after thinking are a token of their own, as in vocabularies of the field.
_GAP = "\n\n"
THOUGHT = "Hm, so it is"
ANSWER = "Paris."
_THINKS = (b"\nHm", b", so it", b" is")
_ANSWERS = (b" Paris", b".")


@dataclass(frozen=True, kw_only=True)
class Thinker:
    """What is said after any prompt, and by which template."""

    template: str
    says: tuple[bytes, ...]
    special: tuple[str, ...] = ()
    defined: tuple[str, ...] = ()
    after: dict[str, bytes] = field(default_factory=dict)

    def write(self, path: Path, context: int = 512) -> Path:
        """The model's file."""
        write_scripted(
            path,
            self.says,
            metadata={"tokenizer.chat_template": self.template},
            special=self.special,
            defined=self.defined,
            after=self.after,
            context=context,
        )
        return path


_TAGS = ("<think>", "</think>", _GAP)
_TAGGED = (b"<think>", *_THINKS, b" \n", b"</think>", *_ANSWERS)
QWEN = Thinker(template=templates.QWEN, says=_TAGGED, defined=_TAGS, after={_GAP: b" Paris"})
SWITCHED = Thinker(
    template=templates.SWITCHED,
    says=_TAGGED,
    defined=("<think>", "</think>\n", "</think>", _GAP),
    after={"</think>\n": b" Paris"},
)
OPENED = Thinker(
    template=templates.OPENED, says=_TAGGED[1:], defined=_TAGS, after={_GAP: b" Paris"}
)
# No token of the vocabulary is a mark: they come in pieces.
SPELLED = Thinker(
    template=templates.QWEN,
    says=(b"<thi", b"nk>", *_THINKS, b" </", b"think", b">\n", *_ANSWERS),
)
PARTS = Thinker(
    template=templates.PARTS,
    says=(b"[THINK]", b"Hm", *_THINKS[1:], b"[/THINK]", b"Paris", b"."),
    special=("[THINK]", "[/THINK]", "[INST]", "[/INST]"),
)
CHANNELS = Thinker(
    template=templates.CHANNELS,
    # Channels have the same marks again and again: of those, a few in one token each.
    says=(
        *(b"<|channel|>", b"analysis", b"<|message|>", *_THINKS, b"<|end|>", b"<|start|>"),
        *(b"assistant<|channel|>final<|message|>", *_ANSWERS, b"<|return|>"),
    ),
    special=("<|start|>", "<|end|>", "<|channel|>", "<|message|>", "<|return|>", "<|call|>"),
)
GRANITE = Thinker(
    template=templates.GRANITE,
    says=(b"<think>", *_THINKS, b"</think>", b"\n<resp", b"onse>", b"Paris", b".", b"</response>"),
)
ALL = {
    "qwen": QWEN,
    "switched": SWITCHED,
    "opened": OPENED,
    "spelled": SPELLED,
    "parts": PARTS,
    "channels": CHANNELS,
    "granite": GRANITE,
}
