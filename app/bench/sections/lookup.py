"""`bench lookup`: what drafts from the context gain, and what they cost where nothing matches.

Every task is answered by the same engine with drafts and without, in turns, and its fastest
runs count. Dictated tasks are told what to say, token by token, so that a small model too does
what a better one would: the network computes all that it would, and its own choice is overruled.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from app import stopping
from app.bench.meter import Meter
from app.bench.settings import LookupSettings
from app.chat_tokens import ChatTokens
from app.engine import Engine, Request
from app.events import Completion, Finished
from kvcache import Backend, CacheConfig
from models import load
from models.loader import LoadedModel
from models.text.messages import Message, Role

_LOADING_SECONDS = 0.3
_TOKEN_SECONDS = 0.006
_OVERRULED = 1e4


@dataclass(frozen=True, kw_only=True)
class Task:
    """A question, and what is to be said, token by token; "" leaves that to the model."""

    name: str
    question: str
    dictated: str = ""


@dataclass(frozen=True, kw_only=True)
class LookupRow:
    """One task, with drafts and without: the fastest of `reps` runs each.

    gain: tokens per second with drafts over those without. drafted, accepted: tokens of the
    fastest run. same: whether all runs said the same.
    """

    task: str
    dictated: bool
    model: str
    backend: str
    threads: int
    prompt_tokens: int
    tokens: int
    tps_without: float
    tps: float
    gain: float
    drafted: int
    accepted: int
    tokens_per_step: float
    same: bool
    reps: int


def expected_seconds(settings: LookupSettings) -> float:
    """Of the whole section."""
    return _LOADING_SECONDS + len(_chosen(settings)) * _task_seconds(settings)


def run(settings: LookupSettings, meter: Meter) -> Iterator[LookupRow]:
    """A row for each task."""
    with meter.step("lookup: load", _LOADING_SECONDS):
        loaded = load(settings.model, backend=Backend(settings.backend).resolve())
    for task in _chosen(settings):
        with meter.step(f"lookup: {task.name}", _task_seconds(settings)):
            yield _row(loaded, task, settings)


def _chosen(settings: LookupSettings) -> Sequence[Task]:
    return [task for task in tasks() if not settings.tasks or task.name in settings.tasks]


def tasks() -> Sequence[Task]:
    """Those that repeat their input, then those that do not."""
    code = Path(stopping.__file__).read_text(encoding="utf-8")
    edited = code.replace("StopStrings", "StopTexts").replace("held", "kept")
    items = [
        f"{first} {last} ({town}), born {year}"
        for first, last, town, year in zip(_FIRST, _LAST, _TOWNS, range(1931, 1999, 7), strict=True)
    ]
    records = "\n".join(
        f'{{"name": "{first} {last}", "town": "{town}"}}'
        for first, last, town in zip(_FIRST, _LAST, _TOWNS, strict=True)
    )
    settings = "\n".join(
        f"{name} = settings.read(section, default={at * 37 % 101})"
        for at, name in enumerate(_GERMAN)
    )
    translated = settings
    for german, english in _GERMAN.items():
        translated = re.sub(rf"\b{german}\b", english, translated)
    return (
        Task(
            name="edit code",
            question=f"Rename StopStrings to StopTexts and held to kept:\n\n{code}",
            dictated=edited,
        ),
        Task(
            name="extract records",
            question="Give name and town of each person as JSON:\n\n" + "\n".join(items),
            dictated=records,
        ),
        Task(
            name="translate names",
            question=f"Translate the names in this code to English:\n\n{settings}",
            dictated=translated,
        ),
        Task(name="list names", question="Write each name on a line: " + "; ".join(items)),
        Task(name="poem", question="Write a poem about the sea."),
        Task(name="explain", question="Why is the sky blue? Explain at length."),
        Task(name="story", question="Tell me a story about a lighthouse.", dictated=_STORY),
    )


class _Dictated:
    """A network that computes all that it would and then says a text, from a position on."""

    def __init__(self, inner: Any, said: Sequence[int], start: int) -> None:
        self._inner, self._said, self._start = inner, said, start

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __call__(self, ids: mx.array, caches: Sequence[Any]) -> mx.array:
        first = caches[0].offset + 1 - self._start
        logits: mx.array = self._inner(ids, caches)
        # In place: a copy would take as long as a tenth of a row.
        numbers = np.array(logits, copy=False)
        for row, token in enumerate(self._said[first : first + ids.shape[1]]):
            numbers[0, row, token] += _OVERRULED
        return logits


def _row(loaded: LoadedModel, task: Task, settings: LookupSettings) -> LookupRow:
    prompt = ChatTokens(loaded).prompt([Message(role=Role.USER, content=task.question)]).ids
    request, model = Request(prompt=prompt, max_tokens=settings.tokens), loaded
    if task.dictated:
        said = loaded.tokenizer.encode(task.dictated, add_special=False)
        network: Any = _Dictated(loaded.model, said, len(prompt))
        model = replace(loaded, model=network)
        request = replace(request, max_tokens=min(len(said), settings.tokens))
    engine = Engine(model, CacheConfig(backend=Backend(settings.backend)))
    without, with_drafts = list[Completion](), list[Completion]()
    for _ in range(settings.reps + 1):
        # From nothing each: a cache that is rewound may hold other roundings.
        for lookup, into in ((False, without), (True, with_drafts)):
            engine.forget()
            into.append(_answer(engine, replace(request, lookup=lookup)))
    slow, fast = (max(runs[1:], key=lambda run: run.decode_tps) for runs in (without, with_drafts))
    return LookupRow(
        task=task.name,
        dictated=bool(task.dictated),
        model=Path(settings.model).stem,
        backend=engine.plan.backend.value,
        threads=settings.threads,
        prompt_tokens=len(prompt),
        tokens=len(fast.tokens),
        tps_without=slow.decode_tps,
        tps=fast.decode_tps,
        gain=fast.decode_tps / slow.decode_tps if slow.decode_tps else 0.0,
        drafted=fast.drafts.tried,
        accepted=fast.drafts.accepted,
        tokens_per_step=fast.drafts.tokens_per_step,
        same=len({each.tokens for each in (*without, *with_drafts)}) == 1,
        reps=settings.reps,
    )


def _answer(engine: Engine, request: Request) -> Completion:
    *_, last = engine.generate(request)
    assert isinstance(last, Finished)
    return last.completion


def _task_seconds(settings: LookupSettings) -> float:
    return 2 * (settings.reps + 1) * settings.tokens * _TOKEN_SECONDS


_FIRST = (
    *("Anna", "Bertrand", "Chiyoko", "Dmitri", "Esperanza"),
    *("Friedrich", "Guadalupe", "Hideki", "Ingrid", "Joaquim"),
)
_LAST = (
    *("Kowalska", "Lefevre", "Tanaka", "Sokolov", "Villanueva"),
    *("Baumgartner", "Hernandez", "Yamamoto", "Lindqvist", "Figueiredo"),
)
_TOWNS = (
    *("Wroclaw", "Grenoble", "Kanazawa", "Novosibirsk", "Valladolid"),
    *("Regensburg", "Guadalajara", "Hiroshima", "Linköping", "Coimbra"),
)
_GERMAN = {
    "fenster_breite_links": "window_width_left",
    "fenster_breite_rechts": "window_width_right",
    "fenster_hoehe_oben": "window_height_top",
    "fenster_hoehe_unten": "window_height_bottom",
    "schrift_groesse_titel": "font_size_title",
    "schrift_groesse_text": "font_size_text",
    "schrift_farbe_titel": "font_colour_title",
    "schrift_farbe_text": "font_colour_text",
    "rand_abstand_links": "margin_distance_left",
    "rand_abstand_rechts": "margin_distance_right",
}
_STORY = """Nobody in the village remembered who had built the tower on the rocks, only that its
lamp had never gone out while somebody was at sea. Marta climbed the hundred and nine steps each
evening with a can of oil, a heel of bread and whatever book the ferry had brought that week. In
winter the wind leaned on the door so hard that she had to push with both shoulders. She knew
every ship by the way it greeted her: a long note from the mail boat, two short ones from the
fishermen, and from her brother's schooner a bell that he rang himself, badly. One autumn the
bell did not come. She kept reading until the words swam, then trimmed the wick again, and waited
for morning with her coat on. When grey finally crept over the water she saw a sail, torn, and
under it a man who waved a shirt because his bell lay on the bottom of the bay."""
