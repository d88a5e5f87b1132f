"""`bench needle`: is a fact still there once it is in the cold tier?

A number is placed early in a text; at several lengths the model is asked for it,
its answer is read, and the cache goes back to before the question. Only cases
that the f16 cache answers count.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

import mlx.core as mx
import numpy as np

from app.bench.meter import Meter
from app.bench.sections.text import text_ids
from app.bench.settings import NeedleSettings
from app.layer_losses import with_kv
from kvcache import Backend, CacheConfig, EmberError, KeyMetric, TwoTierKVCache, resolve
from kvcache.prompt_cache import from_plan, rewind
from models import load
from models.calibrate import key_metric
from models.loader import LoadedModel
from models.network.llama import Model

_CHUNK = 64
_ANSWER = 8  # greedy tokens after the question
_PLACES = (20, 300)  # where a fact may begin
_FIRST_LENGTH = 350
_SHIFT = 97  # tokens by which the text begins later for each needle
_STATEMENT = "\n\nRemember this: the secret number of the {name} is {number}.\n\n"
_QUESTION = (
    "\n\nQuestion: What is the secret number of the {name}?"
    "\nAnswer: The secret number of the {name} is"
)
_NAMES = ("garden", "castle", "river", "library", "mountain", "harbour", "market", "temple")
# Expected: to load, a token that is read, a question with its answer.
_LOADING_SECONDS = 2.0
_READ_SECONDS = 0.002
_ASKED_SECONDS = 0.2

Counts = dict[tuple[str, int], Counter[str]]  # by codecs and length


@dataclass(frozen=True, kw_only=True)
class NeedleRow:
    """One cache at one length of text, with `hot` tokens unencoded.

    asked: cases; answered_by_f16: those that the f16 cache answers; kept: of these, those
    that this cache answers too.
    """

    kv: str
    hot: int
    length: int
    asked: int
    answered_by_f16: int
    kept: int


@dataclass(frozen=True, kw_only=True)
class Needle:
    """A fact in a text, and the question for it."""

    text: list[int]
    question: list[int]
    number: str


def expected_seconds(settings: NeedleSettings) -> float:
    """Of the whole section."""
    return _LOADING_SECONDS + settings.needles * _needle_seconds(settings)


def run(settings: NeedleSettings, meter: Meter) -> Iterator[NeedleRow]:
    """A row for each cache and length, after all needles; an interrupt leaves those asked."""
    settings = replace(settings, lengths=tuple(sorted(settings.lengths)))
    if settings.lengths[0] < _FIRST_LENGTH:
        raise EmberError(
            f"got --lengths {settings.lengths[0]}, expected at least {_FIRST_LENGTH}, "
            "so that the fact is in the text"
        )
    counts: Counts = {(kv, length): Counter() for kv in settings.kv for length in settings.lengths}
    try:
        _ask_all(settings, meter, counts)
    except KeyboardInterrupt:
        yield from _rows(settings, counts)
        raise
    yield from _rows(settings, counts)


def _rows(settings: NeedleSettings, counts: Counts) -> Iterator[NeedleRow]:
    for (kv, length), count in counts.items():
        if count["asked"]:
            yield NeedleRow(
                kv=kv,
                hot=settings.hot,
                length=length,
                asked=count["asked"],
                answered_by_f16=count["answered"],
                kept=count["kept"],
            )


def _ask_all(settings: NeedleSettings, meter: Meter, counts: Counts) -> None:
    with meter.step("needle: loading", _LOADING_SECONDS):
        loaded = load(settings.model, backend=Backend(settings.backend).resolve())
        filler, metric = text_ids(loaded.tokenizer), key_metric(loaded)
        configs = {kv: _config(settings, kv, loaded) for kv in ("f16", *settings.kv)}
    for seed in range(settings.needles):
        with meter.step(f"needle: {seed + 1} of {settings.needles}", _needle_seconds(settings)):
            needle = make(loaded, filler[_SHIFT * seed :], seed)
            answers = {
                kv: ask(loaded, config, needle, settings.lengths, metric)
                for kv, config in configs.items()
            }
        for kv in settings.kv:
            for length, answered, kept in zip(
                settings.lengths, answers["f16"], answers[kv], strict=True
            ):
                counts[kv, length].update(asked=1, answered=answered, kept=answered and kept)


def make(loaded: LoadedModel, filler: Sequence[int], seed: int) -> Needle:
    """A made-up fact somewhere early in `filler`."""
    random = Random(seed)
    name, number = random.choice(_NAMES), f"{random.randrange(10000, 100000)}"
    position = random.randrange(*_PLACES)
    encode = loaded.tokenizer.encode
    fact = encode(_STATEMENT.format(name=name, number=number), add_special=False)
    return Needle(
        text=[*filler[:position], *fact, *filler[position:]],
        question=encode(_QUESTION.format(name=name), add_special=False),
        number=number,
    )


def ask(
    loaded: LoadedModel,
    config: CacheConfig,
    needle: Needle,
    lengths: Sequence[int],
    metric: KeyMetric | None = None,
) -> list[bool]:
    """Whether the number is answered after each of `lengths` tokens of the text."""
    plan = resolve(config, loaded.model.shape)
    cache = from_plan(plan, loaded.model.rotations, metric)
    answered, done = [], 0
    for length in lengths:
        for start in range(done, length, _CHUNK):
            chunk = needle.text[start : min(start + _CHUNK, length)]
            loaded.model.hidden(mx.array([chunk]), cache)
        said = loaded.tokenizer.decode(_answer(loaded.model, cache, needle.question))
        answered.append(needle.number in said)
        # Less than `length` where the question was so long that the text went cold.
        done = rewind(cache, plan, tokens=length, total=length + _ANSWER)
    return answered


def _answer(model: Model, cache: Sequence[TwoTierKVCache], question: Sequence[int]) -> list[int]:
    logits = model(mx.array([list(question)]), cache)
    said = []
    for _ in range(_ANSWER):
        said.append(int(np.asarray(logits[0, -1]).argmax()))
        logits = model(mx.array([said[-1:]]), cache)
    return said


def _config(settings: NeedleSettings, kv: str, loaded: LoadedModel) -> CacheConfig:
    """Room for the longest text and its question, so that nothing is let go."""
    base = with_kv(CacheConfig(hot=settings.hot), kv, loaded.path, loaded.model.shape)
    room = max(settings.lengths) + base.sinks + base.hot + 4 * base.block
    backend = Backend(settings.backend)
    return replace(base, backend=backend, max_tokens=room, beyond_context=True)


def _needle_seconds(settings: NeedleSettings) -> float:
    asking = len(settings.lengths) * _ASKED_SECONDS
    return (1 + len(settings.kv)) * (max(settings.lengths) * _READ_SECONDS + asking)
