"""A conversation to the text a model was trained on, by its jinja2 template.

Knows nothing of the network or of sampling. A template comes from the file and is
untrusted: `template_process` runs it, with limits. It is tried once, at first use, on a
conversation of made-up words, and what it cannot do is done for it; where it does not
show what the user said, a built-in template is taken, and `take_notes` says so.

What a message says is not escaped, as in llama.cpp and transformers: a text
that contains `<|im_end|>` ends its turn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from threading import Event

from models.errors import ChatTemplateError
from models.gguf.metadata import Metadata
from models.text.builtin_templates import (
    TemplateSource,
    TemplateText,
    builtin,
    builtin_named,
    builtin_source,
)
from models.text.messages import Message, Role, joined, with_word, without_system
from models.text.shown import all_stand
from models.text.template_process import Rendering, TemplateFault, TemplateProcess
from models.text.template_thinking import TemplateThinking, Turn, template_thinking
from models.text.thinking import ThinkingMarks, thinking_marks
from models.text.tokenized_text import TokenizedText
from models.text.tokenizer import Tokenizer

_KEY = "tokenizer.chat_template"
_MAX_CHARACTERS = 1 << 18
_ANOTHER = "--chat-template takes another"


# What a template is tried on: words that it cannot know.
_SYSTEM = Message(role=Role.SYSTEM, content="Qsystemq")
_FIRST = Message(role=Role.USER, content="Qfirstq")
_ANSWER = Message(role=Role.ASSISTANT, content="Qanswerq")
_SECOND = Message(role=Role.USER, content="Qsecondq")
_TOOL_NAME = "qtoolq"
_TOOL: dict[str, object] = {
    "type": "function",
    "function": {
        "name": _TOOL_NAME,
        "description": "Qdescribedq",
        "parameters": {"type": "object", "properties": {"qkeyq": {"type": "string"}}},
    },
}

_ABSENT: dict[str, object] = {"tools": None, "documents": None}
_EMPTY: dict[str, object] = {"tools": [], "documents": [], "functions": "", "datetime": ""}


@dataclass(frozen=True, kw_only=True)
class _Format:
    """What is rendered, and what is done for the template.

    parts: contents are lists of parts, as templates of models that see want them.
    empties: what is not there (tools, documents) is empty, where it else is None as in
    transformers. folds_system: the system prompt goes into the first question.
    alternates: neighbours of one role become one message. later: what is wrong with a
    conversation of more than one question. thinking: what is known of it.
    """

    text: str
    parts: bool = False
    empties: bool = False
    folds_system: bool = False
    alternates: bool = False
    later: str = ""
    thinking: TemplateThinking = field(default_factory=TemplateThinking)

    def turns(self, messages: Sequence[Message], think: bool | None = None) -> list[Turn]:
        """The messages as the template takes them."""
        if word := self.thinking.word(think):
            messages = with_word(messages, word)
        if self.folds_system:
            messages = without_system(messages)
        if self.alternates:
            messages = joined(messages)
        return [{"role": each.role.value, **self._said(each), **each.more} for each in messages]

    def content(self, text: str) -> object:
        """A text as the content of a message."""
        return [{"type": "text", "text": text}] if self.parts else text

    def _said(self, message: Message) -> Turn:
        content = self.content(message.content)
        return self.thinking.said(content, message.content, message.thinking)


class ChatTemplate:
    """The chat format of one model. Any thread may render.

    source: where the template came from; known for good after its first use (`settle`).
    """

    def __init__(
        self,
        template: TemplateText,
        tokenizer: Tokenizer,
        *,
        otherwise: TemplateSource,
        process: TemplateProcess | None = None,
    ) -> None:
        """A template as it is; that it is none is found at first use.

        otherwise: the built-in template to take instead.
        """
        self.source = template.source
        self._template, self._otherwise = template, otherwise
        self._tokenizer = tokenizer
        self._process = process or TemplateProcess()
        self._format: _Format | None = None
        self._notes: list[str] = []
        self._told_of_folding = False
        self._with_tools: bool | None = None

    @classmethod
    def from_metadata(
        cls, metadata: Metadata, tokenizer: Tokenizer, given: TemplateText | None = None
    ) -> "ChatTemplate":
        """The template that is given, else the file's, else the built-in one that fits best."""
        text = next((metadata[key] for key in (_KEY, f"{_KEY}.default") if key in metadata), "")
        otherwise = builtin_source(metadata.get("general.name"), tokenizer, str(text))
        if given is not None:
            return cls(given, tokenizer, otherwise=otherwise)
        if not isinstance(text, str):
            made = cls(builtin(otherwise), tokenizer, otherwise=otherwise)
            made._note_instead("the model's chat template is no text")
            return made
        template = TemplateText(
            source=TemplateSource.FILE, text=text, name="the model's chat template"
        )
        known = builtin_named(text)
        if known is not None or not text.strip():
            template = builtin(known or otherwise)
        return cls(template, tokenizer, otherwise=otherwise)

    @property
    def text(self) -> str:
        """The template as it was given."""
        return self._template.text

    def start(self) -> None:
        """Make ready for the first rendering, which is then quicker; waits for nothing."""
        self._process.start()

    def settle(self, cancel: Event | None = None) -> None:
        """Find out, once, what the template can do. Rendering does this where it was not done.

        Raises:
            ChatTemplateError: the template that the user gave is none, or loses questions.
            RenderStoppedError: `cancel` was set.
        """
        if self._format is None:
            self._format = self._tried(cancel)

    @property
    def thinking(self) -> TemplateThinking:
        """What the template does with thinking; settles it."""
        self.settle()
        assert self._format is not None
        return self._format.thinking

    def take_notes(self) -> list[str]:
        """What the user should know of the template since the last call, a line each."""
        notes, self._notes = self._notes, []
        return notes

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        think: bool | None = None,
        tools: Sequence[Mapping[str, object]] = (),
        cancel: Event | None = None,
    ) -> str:
        """The conversation as text; with the head of the next answer, unless told otherwise.

        think: whether the model is to think, where the template has a switch for it; None
        leaves it to the template. tools: that the model may call, as JSON schemas.

        Raises:
            ChatTemplateError: the template failed, refuses this order of messages, took more
                than `template_process.TemplateLimits`, or has no place for tools.
            RenderStoppedError: `cancel` was set.
        """
        self.settle(cancel)
        assert self._format is not None
        if self._format.later and any(each.role is Role.ASSISTANT for each in messages):
            self._format = self._instead(self._format.later)
        self._check_tools(messages, tools, cancel)
        more = {"tools": list(tools)} if tools else {}
        text = self._text(messages, add_generation_prompt, think, cancel, more)
        asked = [message.content for message in messages if message.role is Role.USER]
        if not self.source.is_builtin and not all_stand(asked, text, self._template.text):
            self._format = self._instead("does not show all that was asked")
            text = self._text(messages, add_generation_prompt, think, cancel, {})
        if self._format.folds_system and any(each.role is Role.SYSTEM for each in messages):
            self._tell_of_folding()
        return text

    def encode(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        think: bool | None = None,
        tools: Sequence[Mapping[str, object]] = (),
        cancel: Event | None = None,
    ) -> list[int]:
        """The conversation as ids, as `TokenizedText` makes them of `render`'s text."""
        text = self.render(
            messages,
            add_generation_prompt=add_generation_prompt,
            think=think,
            tools=tools,
            cancel=cancel,
        )
        return TokenizedText.of(self._tokenizer, text).ids

    def _text(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool,
        think: bool | None,
        cancel: Event | None,
        more: Mapping[str, object],
    ) -> str:
        """more: variables beside those of thinking."""
        assert self._format is not None
        turns = self._format.turns(messages, think)
        more = {**self._format.thinking.variables(think), **more}
        shown = self._rendering(self._format, turns, more, add_generation_prompt, cancel)
        if shown.fault is not None:
            hint = f" ({_ANOTHER})" if self.source is TemplateSource.FILE else ""
            raise ChatTemplateError(f"{self._template.name} {shown.complaint}{hint}")
        return shown.text

    def _check_tools(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, object]],
        cancel: Event | None,
    ) -> None:
        """Raise ChatTemplateError for tools, or calls of them, that the template does not show."""
        calls = any("tool_calls" in each.more or each.role is Role.TOOL for each in messages)
        if (tools or calls) and not self._shows_tools(cancel):
            raise ChatTemplateError(
                f"{self._template.name} has no place for tools: no tools are called"
            )

    def _shows_tools(self, cancel: Event | None) -> bool:
        """Whether a conversation with a tool is another text; asked once of a template."""
        assert self._format is not None
        if self._with_tools is None:
            shown = self._rendering(
                self._format, self._format.turns([_FIRST]), {"tools": [_TOOL]}, True, cancel
            )
            self._with_tools = shown.fault is None and _TOOL_NAME in shown.text
        return self._with_tools

    def _rendering(
        self,
        format_: _Format,
        turns: Sequence[Turn],
        more: Mapping[str, object],
        add_generation_prompt: bool,
        cancel: Event | None,
    ) -> Rendering:
        """more: variables beside those that every template is given."""
        variables = {
            "add_generation_prompt": add_generation_prompt,
            "bos_token": self._special(self._tokenizer.bos_id),
            "eos_token": self._special(self._tokenizer.eos_id),
        } | (_EMPTY if format_.empties else _ABSENT)
        return self._process.render(format_.text, turns, {**variables, **more}, cancel=cancel)

    def _tried(self, cancel: Event | None) -> _Format:
        """The template with what must be done for it, or the built-in one."""
        text = self._template.text
        if self.source.is_builtin:
            return self._builtin()
        if len(text) > _MAX_CHARACTERS:
            return self._instead(f"has {len(text)} characters, expected at most {_MAX_CHARACTERS}")
        talk, complaints = [_FIRST, _ANSWER, _SECOND], []
        for_one: _Format | None = None
        for empties, parts in product((False, True), repeat=2):
            format_ = _Format(text=text, parts=parts, empties=empties)
            complaint, is_over = self._complaint(format_, [_FIRST], cancel)
            if not complaint:
                complaint, is_over = self._complaint(format_, talk, cancel)
                if not complaint:
                    return self._fitted(format_, cancel)
                for_one = for_one or replace(format_, later=complaint)
            complaints.append(complaint)
            if is_over:
                return self._instead(complaint)
        return self._fitted(for_one, cancel) if for_one else self._instead(complaints[0])

    def _fitted(self, format_: _Format, cancel: Event | None) -> _Format:
        system, _ = self._complaint(format_, [_SYSTEM, _FIRST], cancel)
        twice, _ = self._complaint(format_, [_FIRST, _SECOND], cancel)

        last: Rendering | None = None

        def render(turns: Sequence[Turn], more: Mapping[str, object], head: bool) -> str | None:
            nonlocal last
            # One that had to be stopped is asked no more.
            if last is None or last.fault is not TemplateFault.STOPPED:
                last = self._rendering(format_, turns, more, head, cancel)
            return None if last.fault is not None else last.text

        marks = self._marks(format_.text)
        thinking = template_thinking(format_.text, marks, format_.content, render)
        return replace(
            format_, folds_system=bool(system), alternates=bool(twice), thinking=thinking
        )

    def _builtin(self) -> _Format:
        """A built-in template as it is; of thinking it knows what the vocabulary has."""
        text = self._template.text
        marks = self._marks(text)
        closing = "" if marks is None else marks.closing
        return _Format(text=text, thinking=TemplateThinking(marks=marks, closing=closing))

    def _marks(self, text: str) -> ThinkingMarks | None:
        return thinking_marks(text, self._tokenizer)

    def _complaint(
        self, format_: _Format, messages: Sequence[Message], cancel: Event | None
    ) -> tuple[str, bool]:
        """What is wrong with how made-up messages are shown, "" if nothing; whether to give up."""
        shown = self._rendering(format_, format_.turns(messages), {}, True, cancel)
        if shown.fault is not None:
            return shown.complaint, shown.fault in (TemplateFault.STOPPED, TemplateFault.SYNTAX)
        said = [message.content for message in messages]
        # A list that is written as it stands is no text.
        forms = ("'{}'", '"{}"') if format_.parts else ("'content': '{}'",)
        lost = any(each not in shown.text for each in said)
        listed = any(form.format(each) in shown.text for form in forms for each in said)
        return ("does not show what was said" if lost or listed else ""), False

    def _instead(self, why: str) -> _Format:
        """The built-in template, from here on. A template that the user gave is an error."""
        complaint = f"{self._template.name} {why}"
        if self.source is TemplateSource.GIVEN:
            raise ChatTemplateError(complaint)
        self._note_instead(complaint)
        self._template, self._with_tools = builtin(self._otherwise), None
        self.source = self._otherwise
        return self._builtin()

    def _note_instead(self, complaint: str) -> None:
        self._notes.append(f"{complaint}; taken instead: {self._otherwise.value} ({_ANOTHER})")

    def _tell_of_folding(self) -> None:
        if not self._told_of_folding:
            self._notes.append(
                f"{self._template.name} has no place for a system prompt: "
                "it goes before the first question"
            )
        self._told_of_folding = True

    def _special(self, id_: int | None) -> str:
        return "" if id_ is None else self._tokenizer.text(id_)
