"""ChatTokens: ids as if all of a chat were tokenized for each question, by work for what is new."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.chat_tokens import ChatTokens
from app.engine import Engine, Request
from app.events import Completion, Finished, FinishReason
from app.transcript import Transcript
from kvcache import Backend
from models.loader import LoadedModel, load
from models.text.builtin_templates import TemplateSource, TemplateText, given_template
from models.text.chat_template import ChatTemplate
from models.text.messages import Message, Role, opening
from models.text.template_process import TemplateProcess
from models.text.thinking import parted
from models.text.tokenized_text import TokenizedText
from models.text.tokenizer import TextPart, Tokenizer
from models.text.vocabulary import TokenType
from tests import thinking_templates as templates
from tests.app.all_anew import AllAnew
from tests.models.text.vocabularies import Keys, byte_level, with_scores

WORDS = "ba ce di fo gu "
MARKS = (
    *("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|end|>", "<|user|>"),
    *("<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>", "<end_of_turn>"),
)
SPECIAL = dict.fromkeys(MARKS, TokenType.CONTROL)
# After all bytes and the merges.
BOS: Keys = {"bos_token_id": 260, "eos_token_id": 261, "add_bos_token": True}
PIECES = {"▁": -9.0, "b": -9.0, "a": -9.0, "ba": -2.0, "▁ba": -1.0, "ce": -3.0, "\n": -9.0}
VOCABULARIES = {
    "bytes": byte_level(("b a", "Ġ ba", "c e", "Ċ Ċ"), special=SPECIAL, changes=BOS),
    "scores": with_scores(PIECES),
}
TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
ANSWER = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
EACH = "{% for m in messages %}{{ m.role + ' ' + m.content + ' ' }}{% endfor %}"
# Templates that do to a conversation what templates of the field do.
ODD = {
    "without marks": EACH + "{% if add_generation_prompt %}assistant {% endif %}",
    "without a head": EACH,
    "trims": "{% for m in messages %}" + TURN.replace("content", "content | trim") + "{% endfor %}",
    "strips thinking": "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == "
    "'assistant' %}{{ m.content.split('</think>')[-1].lstrip() }}{% else %}{{ m.content }}"
    "{% endif %}<|im_end|>\n{% endfor %}" + ANSWER,
    "marks the last question": "{% for m in messages %}{% if loop.last %}NOW {% endif %}"
    + TURN
    + "{% endfor %}"
    + ANSWER,
    "counts": "{{ messages | length }}{% for m in messages %}" + TURN + "{% endfor %}" + ANSWER,
    "takes turns": "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('alternate') }}{% endif %}" + TURN + "{% endfor %}" + ANSWER,
    "reads parts": "{% for m in messages %}" + TURN.replace("content", "content[0].text") + ""
    "{% endfor %}" + ANSWER,
    "loses a question": "{% for m in messages if m.content != 'ce' %}" + TURN + "{% endfor %}",
    "for one question": "{{ messages[0].content }}",
    "useless": "{% if %}",
}
BUILT_IN = [source.name.lower() for source in TemplateSource if source.is_builtin]
NAMES = [*ODD, *(name for name in BUILT_IN if name != "guess")]
PROCESS = TemplateProcess()


@pytest.fixture(scope="module")
def tiny(tiny_path: Path) -> LoadedModel:
    return load(tiny_path, backend=Backend.REFERENCE)


@pytest.fixture(params=VOCABULARIES, scope="module")
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer.from_metadata(VOCABULARIES[request.param])


def template(name: str, tokenizer: Tokenizer) -> ChatTemplate:
    text = TemplateText(source=TemplateSource.FILE, text=ODD.get(name, ""), name="the template")
    return ChatTemplate(
        text if name in ODD else given_template(name),
        tokenizer,
        otherwise=TemplateSource.CHATML,
        process=PROCESS,
    )


def turns(*texts: str, system: str = "") -> list[Message]:
    """A conversation of alternating speakers."""
    roles = (Role.USER, Role.ASSISTANT)
    said = (Message(role=roles[at % 2], content=text) for at, text in enumerate(texts))
    return [*opening(system), *said]


def answer(
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    ids: Sequence[int],
    *,
    reason: FinishReason = FinishReason.LENGTH,
    stop: Sequence[str] = (),
    continuing: bool = False,
) -> Completion:
    """What a model that says these ids would have answered, ended for this reason."""
    transcript = Transcript(
        tokenizer,
        prompt_tokens=len(prompt),
        max_tokens=len(ids) if reason is FinishReason.LENGTH else len(ids) + 2,
        stop=stop,
        continuing=continuing,
    )
    for id_ in ids:
        if transcript.finish_reason is None:
            transcript.add(id_)
    if transcript.finish_reason is None and reason is FinishReason.STOP:
        transcript.add(min(tokenizer.eog_ids))
    if transcript.finish_reason is None:
        transcript.end(reason)
    return transcript.completion()


SAYINGS = st.sampled_from(
    ["ba", "ce", "ba ce\n", " di ", "<|im_end|>", "<think>ba</think>\n\nce", "\n\n", "a", "é"]
)
# What happens to a chat before the next question is asked.
CHANGES = ("ask", "ask", "ask", "retry", "undo", "edit", "continue", "fork", "system", "new chat")
STEPS = st.tuples(
    st.sampled_from(CHANGES),
    SAYINGS,
    st.lists(st.integers(0, 300), max_size=4),
    st.sampled_from(FinishReason),
    st.sampled_from(["", "ba", "e"]),
    st.integers(0, 9),
)


def changed(said: list[Message], change: str, text: str, at: int) -> list[Message]:
    """The chat as it is asked next; its last answer is taken back where it goes on no more."""
    system = [each for each in said if each.role is Role.SYSTEM]
    rest = said[len(system) :]
    question = Message(role=Role.USER, content=text)
    match change:
        case "continue" if rest and rest[-1].role is Role.ASSISTANT:
            return said
        case "retry" if len(rest) > 1:
            return said[:-1]
        case "undo" if len(rest) > 3:
            return [*said[:-3], question]
        case "edit" | "fork" if rest:
            return [*system, *rest[: at % len(rest) // 2 * 2], question]
        case "system":
            return [*opening(text), *rest, question]
        case "new chat":
            return [*opening(text if at % 2 else None), question]
    return [*said, question]


@pytest.mark.parametrize("name", NAMES)
@given(steps=st.lists(STEPS, max_size=9))
@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_the_ids_are_as_if_all_were_tokenized_anew(
    tiny: LoadedModel,
    tokenizer: Tokenizer,
    name: str,
    steps: list[tuple[str, str, list[int], FinishReason, str, int]],
) -> None:
    own = replace(tiny, tokenizer=tokenizer, template=template(name, tokenizer))
    chat, whole = ChatTokens(own), AllAnew(template(name, tokenizer), tokenizer)
    said: list[Message] = []
    for change, text, ids, reason, stop, at in steps:
        said = changed(said, change, text, at)
        continues = said[-1].role is Role.ASSISTANT
        prompt = chat.prompt(said, continues=continues)
        assert prompt.ids == whole.ids(said, continues=continues)
        assert list(prompt.ends) == sorted(prompt.ends)
        assert (len(prompt.ends), prompt.ends[-1]) == (len(said), len(prompt.ids))
        if at == 9:
            # Refused, or never asked of the model.
            continue
        spoken = [id_ % tokenizer.vocab_size for id_ in ids]
        stops = [stop] if stop else []
        completion = answer(
            tokenizer, prompt.ids, spoken, reason=reason, stop=stops, continuing=continues
        )
        chat.answered(completion)
        whole.answered(completion)
        begun = said.pop().content if continues else ""
        said = [*said, Message(role=Role.ASSISTANT, content=begun + completion.text)]


THINKING = {
    "known to the template": templates.QWEN,
    "opened by the template": templates.OPENED,
    "switched in the system prompt": templates.SWITCHED,
    "kept by the template": templates.PARTS,
    "in channels": templates.CHANNELS,
}
CHANNEL_MARKS = ("<|start|>", "<|end|>", "<|channel|>", "<|message|>", "<|return|>", "<|call|>")
THINKING_TOKENIZER = Tokenizer.from_metadata(
    byte_level(
        ("b a", "Ġ ba", "Ċ Ċ"),
        special=dict.fromkeys(
            ("<s>", "</s>", "[THINK]", "[/THINK]", "[INST]", "[/INST]", *CHANNEL_MARKS),
            TokenType.CONTROL,
        )
        | dict.fromkeys(("<think>", "</think>"), TokenType.USER_DEFINED),
        changes={"eos_token_id": 260},
    )
)
THOUGHTS = st.tuples(
    st.sampled_from(["", "ba", "ba\nce ", " di é", "\n"]),
    st.sampled_from(["ba", " ce\n", "\n\ndi", "é 🙂"]),
    st.integers(1, 30),
    st.sampled_from(["ask", "ask", "continue", "continue", "retry"]),
    st.sampled_from([None, None, False, True]),
)


@pytest.mark.parametrize("name", THINKING)
@given(steps=st.lists(THOUGHTS, min_size=1, max_size=7))
@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_prompt_says_what_was_said_and_thought(
    tiny: LoadedModel, name: str, steps: list[tuple[str, str, int, str, bool | None]]
) -> None:
    tokenizer = THINKING_TOKENIZER
    text = TemplateText(source=TemplateSource.FILE, text=THINKING[name], name="the template")
    chat_template = ChatTemplate(text, tokenizer, otherwise=TemplateSource.CHATML, process=PROCESS)
    marks = chat_template.thinking.marks
    assert marks is not None
    chat = ChatTokens(replace(tiny, tokenizer=tokenizer, template=chat_template))
    said: list[Message] = []
    for thinking, words, count, change, think in steps:
        last = said[-1] if said and said[-1].role is Role.ASSISTANT else None
        continues = change == "continue" and last is not None
        if change == "retry" and last is not None:
            said.pop()
        elif not continues:
            said.append(Message(role=Role.USER, content="ba ce?"))
        prompt = chat.prompt(said, continues=continues, think=think)
        head = chat_template.render(said[:-1] if continues else said, think=think)
        begun = tokenizer.decode(prompt.ids, skip_special=False).removeprefix(head)
        assert prompt.thinking is not None
        assert prompt.thinking.begun == marks.opened_by(head) + begun
        assert begun == "" or continues
        if continues and last is not None:
            said.pop()
            assert parted(marks, prompt.thinking.begun) == (last.thinking, last.content)
        # In an answer that has begun, the names of control tokens have no text.
        thinking = "" if continues and last is not None and last.content else thinking
        written = marks.written(thinking, words, opened=False, closing=marks.closing)
        ids = tokenizer.encode(written, add_special=False)[:count]
        transcript = Transcript(
            tokenizer,
            prompt_tokens=len(prompt.ids),
            max_tokens=99,
            continuing=continues,
            thinking=prompt.thinking,
        )
        for id_ in ids:
            transcript.add(id_)
        transcript.end(FinishReason.CANCELLED)
        done = transcript.completion()
        chat.answered(done)
        before = last if continues and last is not None else Message(role=Role.USER, content="")
        answer = Message(
            role=Role.ASSISTANT,
            content=before.content + done.text,
            thinking=before.thinking + done.thinking,
        )
        # The chat leaves out an answer that was stopped before its first word.
        if answer.content:
            said.append(answer)
        elif not answer.thinking:
            said.pop()


def finished(engine: Engine, request: Request) -> Completion:
    *_, last = engine.generate(request)
    assert isinstance(last, Finished)
    return last.completion


def test_an_answer_keeps_its_ids(engine: Engine) -> None:
    loaded = engine.loaded
    chat, said = ChatTokens(loaded), turns("ba ce di")
    first = chat.prompt(said).ids
    assert first == loaded.template.encode(said)
    reply = finished(engine, Request(prompt=first, max_tokens=6))
    chat.answered(reply)
    said = turns("ba ce di", reply.text, "fo gu")
    second = chat.prompt(said).ids
    assert second[: len(first) + 6] == [*first, *reply.tokens]
    assert loaded.tokenizer.decode(second[len(first) + 6 :]) in loaded.template.render(said)
    # Another history is encoded as it stands.
    said[1] = Message(role=Role.ASSISTANT, content="di")
    assert chat.prompt(said).ids == loaded.template.encode(said)


def test_every_answer_to_a_question_keeps_its_ids(engine: Engine) -> None:
    chat, asked = ChatTokens(engine.loaded), turns("ba ce di")
    first = chat.prompt(asked).ids
    given = [[5, 9, 7], [8, 6]]
    answers = [answer(engine.loaded.tokenizer, first, ids) for ids in given]
    for each in answers:
        assert chat.prompt(asked).ids == first
        chat.answered(each)
    for each, ids in zip(answers, given, strict=True):
        said = turns("ba ce di", each.text, "fo gu")
        assert chat.prompt(said).ids[: len(first) + len(ids)] == [*first, *ids]


@pytest.mark.parametrize("how", ["at a stop string", "before its question", "not at all"])
def test_an_answer_that_is_not_all_that_was_read_is_tokenized(engine: Engine, how: str) -> None:
    loaded = engine.loaded
    chat, said = ChatTokens(loaded), turns("ba ce di")
    prompt = chat.prompt(said).ids
    reply = finished(engine, Request(prompt=prompt, max_tokens=8))
    if how == "at a stop string":
        request = Request(prompt=prompt, max_tokens=8, stop=(reply.text[4:6],))
        reply = finished(engine, request)
        assert reply.finish_reason is FinishReason.STOP
    elif how == "before its question":
        reply = finished(engine, Request(prompt=prompt[3:], max_tokens=8))
    if how != "not at all":
        chat.answered(reply)
    said = turns("ba ce di", reply.text, "fo")
    assert chat.prompt(said).ids == loaded.template.encode(said)


def test_ends_are_where_messages_end(tiny: LoadedModel) -> None:
    said = turns("ba ce ", "di", " di", "fo\n", "di", system="fo")
    chat = ChatTokens(tiny)
    for count in (2, 4, 6):
        prompt = chat.prompt(said[:count])
        text, at = tiny.template.render(said[:count]), 0
        for message, end in zip(said[: count - 1], prompt.ends, strict=False):
            at = text.index(message.content, at) + len(message.content.rstrip())
            assert abs(end - len(TokenizedText.of(tiny.tokenizer, text[:at]).ids)) <= 1
        assert prompt.ends[-1] == len(prompt.ids)


def test_ends_count_the_ids_of_answers(tokenizer: Tokenizer, tiny: LoadedModel) -> None:
    own = replace(tiny, tokenizer=tokenizer, template=template("alpaca", tokenizer))
    # Of a text tokenized they would be fewer; the first may have a space that the text lacks.
    first = tokenizer.id_of("▁ba") or tokenizer.id_of("b")
    spoken = [first or 0, *(tokenizer.id_of(each) or 0 for each in "baba")]
    chat, said = ChatTokens(own), turns("ce ba")
    answers: list[int] = []
    for _ in range(150):
        prompt = chat.prompt(said)
        assert list(prompt.ends[1::2]) == answers
        completion = answer(tokenizer, prompt.ids, spoken, reason=FinishReason.STOP)
        chat.answered(completion)
        answers.append(len(prompt.ids) + len(spoken))
        said += [Message(role=Role.ASSISTANT, content=completion.text), *turns("ce ba")]
    # No answer moves the ends of what follows it.
    questions = prompt.ends[2:-1:2]
    assert len({end - before for before, end in pairwise(questions)}) == 1
    # Asked again, answers keep their ids.
    again = chat.prompt(said[:-2], room=10_000)
    assert (again.ids, again.ends[-1]) == (prompt.ids, len(prompt.ids))


def test_whole_turns_are_left_out_and_the_system_prompt_stays(tiny: LoadedModel) -> None:
    long = WORDS * 8
    said = turns(long, long, long, long, WORDS, system=WORDS)
    chat = ChatTokens(tiny)
    whole = chat.prompt(said, room=10_000)
    assert whole == chat.prompt(said)
    assert whole.dropped == 0
    prompt = chat.prompt(said, room=len(whole.ids) - 15)
    assert prompt.dropped == 2
    kept = [said[0], *said[3:]]
    assert prompt.ids == tiny.template.encode(kept)
    ends = chat.prompt(kept).ends
    assert prompt.ends == (ends[0], 0, 0, *ends[1:])
    exact = chat.prompt(said, room=len(prompt.ids))
    assert exact == prompt
    assert chat.prompt(said, room=len(prompt.ids) - 1).dropped == 4
    assert chat.prompt(said, room=1).dropped == 4


def test_a_continued_prompt_ends_inside_the_answer(tiny: LoadedModel) -> None:
    ids = ChatTokens(tiny).prompt(turns(WORDS, WORDS), continues=True).ids
    head = tiny.template.encode(turns(WORDS))
    assert ids == head + tiny.tokenizer.encode(WORDS, add_special=False)


def test_what_follows_a_continued_answer_is_tokenized_with_it(tiny: LoadedModel) -> None:
    tokenizer = Tokenizer.from_metadata(VOCABULARIES["bytes"])
    own = replace(tiny, tokenizer=tokenizer, template=template("without marks", tokenizer))
    chat, said = ChatTokens(own), turns("ce", "ba</s>")
    begun = chat.prompt(said, continues=True)
    prompt = chat.prompt([*said, *turns("ce")])
    assert prompt.ids == own.template.encode([*said, *turns("ce")])
    assert prompt.ids[: len(begun.ids)] != begun.ids


class Counter:
    """Counts what a chat has its tokenizer and its template do."""

    def __init__(
        self, tokenizer: Tokenizer, chat: ChatTemplate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.characters = self.renders = 0
        self._parts, self._render = tokenizer.parts, chat.render
        monkeypatch.setattr(tokenizer, "parts", self._counted_parts)
        monkeypatch.setattr(chat, "render", self._counted_render)

    def _counted_parts(self, text: str, **options: Any) -> Iterator[TextPart]:
        self.characters += len(text)
        return self._parts(text, **options)

    def _counted_render(self, *args: object, **options: object) -> str:
        self.renders += 1
        return self._render(*args, **options)


@pytest.mark.parametrize(
    "name",
    ["chatml", "llama2", "llama3", "mistral", "gemma", "vicuna", "alpaca", "strips thinking"],
)
def test_a_question_costs_what_is_new_to_the_chat(
    tiny: LoadedModel, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = Tokenizer.from_metadata(VOCABULARIES["bytes"])
    own = replace(tiny, tokenizer=tokenizer, template=template(name, tokenizer))
    chat, said = ChatTokens(own), turns("ba ce ba", system="ce")
    count = Counter(tokenizer, own.template, monkeypatch)
    spent: dict[int, tuple[int, int]] = {}
    while len(said) <= 400:
        count.characters = count.renders = 0
        prompt = chat.prompt(said)
        spent[len(said)] = count.characters, count.renders
        # Leading space and thinking, which some templates take away again.
        reply = tokenizer.encode(" <think>ba</think>ce ba", add_special=False)
        completion = answer(tokenizer, prompt.ids, reply, reason=FinishReason.STOP)
        chat.answered(completion)
        said += [Message(role=Role.ASSISTANT, content=completion.text), *turns("ba ce ba")]
    assert spent[10] == spent[100] == spent[400]
    # The answer, the question, and no more around them than the marks of three turns.
    characters, renders = spent[400]
    new = len(completion.text) + 2 * len("ba ce ba")
    assert 0 < characters <= new + 3 * 60
    assert renders == 1


def test_leaving_turns_out_costs_what_stays_and_what_is_new(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = Tokenizer.from_metadata(VOCABULARIES["bytes"])
    own = replace(tiny, tokenizer=tokenizer, template=template("chatml", tokenizer))
    chat, said = ChatTokens(own), turns("ba ce ba", system="ce")
    count = Counter(tokenizer, own.template, monkeypatch)
    spent: dict[int, int] = {}
    while len(said) <= 400:
        count.characters = count.renders = 0
        prompt = chat.prompt(said, room=300)
        spent[len(said)] = count.characters
        assert count.renders == 2
        said += [Message(role=Role.ASSISTANT, content="ce ba"), *turns("ba ce ba")]
    assert prompt.dropped > 300
    assert 0 < spent[400] <= 2 * max(spent[50], spent[52])
