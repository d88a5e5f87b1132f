"""`bench endless`: does a chat have no end? A text much longer than the window, and a story.

Read: the negative log-likelihood of the text under a bounded cache, beside fresh
f16 recomputation of the last `ctx` tokens at sampled positions, by quarters of
the text. Told: tokens drawn at temperature 0.8, with the cache's bytes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from app.bench.meter import Meter
from app.bench.sections.text import text_ids
from app.bench.settings import EndlessSettings
from app.sampling import Sampler, Sampling
from kvcache import Backend, CacheConfig, EmberError, make_prompt_cache
from kvcache.stats import sum_layers
from models import load
from models.network.llama import Model

_CHUNK = 64
_SCORED = 32  # positions scored at each sample, all with nearly the whole window
_GRAM = 4
_PROMPT = 64
_TENTHS = 10
# Expected: to load, a token that is read, one that is drawn.
_LOADING_SECONDS = 2.0
_READ_SECONDS = 0.0022
_DRAWN_SECONDS = 0.009

Floats = npt.NDArray[np.float64]


class Task(Enum):
    """What a cache does."""

    READ = "read"
    TOLD = "told"


@dataclass(frozen=True, kw_only=True)
class EndlessRow:
    """One cache that read or told a text much longer than its window of `ctx` tokens.

    test: a Task's value. finite: no NaN or infinity came up.
    nll: negative log-likelihood, nats, mean over the text that was read.
    quarter_*: the same at sampled positions of each quarter, as a ratio to fresh f16
    recomputation of the last `ctx` tokens.
    distinct: different 4-grams over all 4-grams of the text that was told.
    allocated_*: the least and most bytes of the cache at tenths of the way; None for "read".
    """

    test: str
    cache: str
    ctx: int
    tokens: int
    finite: bool
    nll: float | None = None
    quarter_1: float | None = None
    quarter_2: float | None = None
    quarter_3: float | None = None
    quarter_4: float | None = None
    distinct: float | None = None
    allocated_least: int | None = None
    allocated_most: int | None = None


def expected_seconds(settings: EndlessSettings) -> float:
    """Of the whole section."""
    reading = _fresh_seconds(settings) + len(policies(CacheConfig())) * _text_seconds(settings)
    return _LOADING_SECONDS + reading + _told_seconds(settings)


def run(settings: EndlessSettings, meter: Meter) -> Iterator[EndlessRow]:
    """A row for each cache that reads, then one for the default that tells."""
    with meter.step("endless: fresh recomputation", _LOADING_SECONDS + _fresh_seconds(settings)):
        backend = Backend(settings.backend).resolve()
        loaded = load(settings.model, backend=backend)
        base = CacheConfig(max_tokens=settings.ctx, backend=backend)
        ids = text_ids(loaded.tokenizer)[: settings.tokens]
        least = settings.ctx + _SCORED + 4 * settings.samples
        if len(ids) < least:
            raise EmberError(f"got a text of {len(ids)} tokens, expected at least {least}")
        at = samples(len(ids), settings)
        fresh = fresh_likelihoods(loaded.model, base, ids, at)
    for name, config in policies(base).items():
        with meter.step(f"endless: reading, {name}", _text_seconds(settings)):
            nll = likelihoods(loaded.model, config, ids)
            first, second, third, fourth = quarters(nll, fresh, at)
        yield EndlessRow(
            test=Task.READ.value,
            cache=name,
            ctx=settings.ctx,
            tokens=len(ids),
            finite=bool(np.isfinite(nll).all()),
            nll=float(nll.mean()),
            quarter_1=first,
            quarter_2=second,
            quarter_3=third,
            quarter_4=fourth,
        )
    if settings.generate:
        with meter.step("endless: telling", _told_seconds(settings)):
            told = tell(loaded.model, base, ids[:_PROMPT], settings.generate)
        yield replace(told, ctx=settings.ctx)


def policies(base: CacheConfig) -> dict[str, CacheConfig]:
    """The caches that stand beside each other, by name."""
    return {
        "default": base,
        "f16": replace(base, keys="f16", values="f16"),
        "no sinks": replace(base, sinks=0),
        "sinks at their true distance": replace(base, turn_sinks=False),
    }


def samples(tokens: int, settings: EndlessSettings) -> list[int]:
    """The last position of each sampled span, as many in each quarter, past the first window."""
    spans = np.linspace(settings.ctx + _SCORED, tokens - 2, 4 * settings.samples)
    return [int(at) for at in spans]


def likelihoods(model: Model, config: CacheConfig, ids: Sequence[int]) -> Floats:
    """Negative log-likelihood of ids[1:], nats, read in chunks through one cache."""
    cache = make_prompt_cache(model, config)
    parts = []
    for start in range(0, len(ids) - 1, _CHUNK):
        stop = min(start + _CHUNK, len(ids) - 1)
        logits = model(mx.array([ids[start:stop]]), cache)[0].astype(mx.float32)
        parts.append(_nll(logits, ids[start + 1 : stop + 1]))
    return np.concatenate(parts)


def fresh_likelihoods(
    model: Model, base: CacheConfig, ids: Sequence[int], at: Sequence[int]
) -> Floats:
    """The same for the `_SCORED` positions up to each of `at`, [len(at), _SCORED], each from
    nothing but the window's tokens before it, in f16."""
    ctx = base.max_tokens or 0
    config = replace(base, keys="f16", values="f16", beyond_context=True, max_tokens=2 * ctx + 1024)
    rows = []
    for last in at:
        cache = make_prompt_cache(model, config)
        window = list(ids[last + 1 - ctx : last + 1])
        for start in range(0, ctx - _SCORED, _CHUNK):
            stop = min(start + _CHUNK, ctx - _SCORED)
            model.hidden(mx.array([window[start:stop]]), cache)
        logits = model(mx.array([window[-_SCORED:]]), cache)[0].astype(mx.float32)
        rows.append(_nll(logits, ids[last + 2 - _SCORED : last + 2]))
    return np.stack(rows)


def quarters(nll: Floats, fresh: Floats, at: Sequence[int]) -> list[float]:
    """Mean NLL over the sampled positions of each quarter, as a ratio to fresh recomputation."""
    ours = np.stack([nll[last + 1 - _SCORED : last + 1] for last in at])
    split = zip(np.split(ours, 4), np.split(fresh, 4), strict=True)
    return [float(mine.mean() / theirs.mean()) for mine, theirs in split]


def tell(model: Model, config: CacheConfig, prompt: Sequence[int], tokens: int) -> EndlessRow:
    """Draw `tokens` at temperature 0.8 with a fixed seed, whatever they are."""
    cache = make_prompt_cache(model, config)
    sampler = Sampler(Sampling(temperature=0.8, seed=7), [prompt])
    drawn: list[int] = []
    finite, allocated = True, []
    logits = model(mx.array([list(prompt)]), cache)[:, -1]
    for step in range(tokens):
        drawn.append(int(np.asarray(sampler(logits))[0]))
        logits = model(mx.array([[drawn[-1]]]), cache)[:, -1]
        finite &= bool(mx.isfinite(logits).all().item())
        if (step + 1) % max(1, tokens // _TENTHS) == 0:
            allocated.append(sum_layers(layer.stats() for layer in cache).allocated_bytes)
    return EndlessRow(
        test=Task.TOLD.value,
        cache="default",
        ctx=config.max_tokens or 0,
        tokens=tokens,
        finite=finite,
        distinct=distinct(drawn),
        allocated_least=min(allocated),
        allocated_most=max(allocated),
    )


def distinct(tokens: Sequence[int]) -> float:
    """Different 4-grams over all 4-grams."""
    grams = list(zip(*(tokens[i:] for i in range(_GRAM)), strict=False))
    return len(set(grams)) / len(grams)


def _nll(logits: mx.array, targets: Sequence[int]) -> Floats:
    rows = np.asarray(logits).astype(np.float64)
    top = rows.max(axis=-1)
    norms = top + np.log(np.exp(rows - top[:, None]).sum(axis=-1))
    found: Floats = norms - rows[np.arange(len(targets)), list(targets)]
    return found


def _fresh_seconds(settings: EndlessSettings) -> float:
    return 4 * settings.samples * settings.ctx * _READ_SECONDS


def _text_seconds(settings: EndlessSettings) -> float:
    return settings.tokens * _READ_SECONDS


def _told_seconds(settings: EndlessSettings) -> float:
    return settings.generate * _DRAWN_SECONDS
