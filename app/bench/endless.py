"""Does a chat have no end? A text much longer than the window, and a story that is.

    python -m app.bench.endless [--ctx 1024] [--tokens 20000] [--generate 20000]

Read: the negative log-likelihood of the text under a rotating cache, beside fresh
f16 recomputation of the last `ctx` tokens at sampled positions, by quarters of
the text. Told: tokens drawn at temperature 0.8, with the cache's bytes.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from app.sampling import Sampler, Sampling
from kvcache import CacheConfig, make_prompt_cache
from kvcache.stats import sum_layers
from models import load
from models.llama import Model

_CHUNK = 64
_SCORED = 32  # positions scored at each sample, all with nearly the whole window
_SAMPLES = 10  # in each quarter
_GRAM = 4

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Told:
    """A generated text: 4-grams that differ, per 4-gram; bytes allocated at tenths of the way."""

    tokens: int
    finite: bool
    distinct: float
    allocated: list[int]


def samples(tokens: int, ctx: int) -> list[int]:
    """The last position of each sampled span, `_SAMPLES` in each quarter, past the first window."""
    return [int(at) for at in np.linspace(ctx + _SCORED, tokens - 2, 4 * _SAMPLES)]


def likelihoods(model: Model, config: CacheConfig, ids: Sequence[int]) -> Floats:
    """Negative log-likelihood of ids[1:], nats, read in chunks through one cache."""
    cache = make_prompt_cache(model, config)
    parts = []
    for start in range(0, len(ids) - 1, _CHUNK):
        stop = min(start + _CHUNK, len(ids) - 1)
        logits = model(mx.array([ids[start:stop]]), cache)[0].astype(mx.float32)
        parts.append(_nll(logits, ids[start + 1 : stop + 1]))
    return np.concatenate(parts)


def fresh_likelihoods(model: Model, ids: Sequence[int], ctx: int, at: Sequence[int]) -> Floats:
    """The same for the `_SCORED` positions up to each of `at`, [len(at), _SCORED], each from
    nothing but the `ctx` tokens before it, in f16."""
    config = CacheConfig(keys="f16", values="f16", beyond_context=True, max_tokens=2 * ctx + 1024)
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


def tell(model: Model, config: CacheConfig, prompt: Sequence[int], tokens: int) -> Told:
    """Draw `tokens` at temperature 0.8, whatever they are."""
    cache = make_prompt_cache(model, config)
    sampler = Sampler(Sampling(temperature=0.8, seed=7), [prompt])
    drawn: list[int] = []
    finite, allocated = True, []
    logits = model(mx.array([list(prompt)]), cache)[:, -1]
    for step in range(tokens):
        drawn.append(int(np.asarray(sampler(logits))[0]))
        logits = model(mx.array([[drawn[-1]]]), cache)[:, -1]
        finite &= bool(mx.isfinite(logits).all().item())
        if (step + 1) % (tokens // 10) == 0:
            allocated.append(sum_layers(layer.stats() for layer in cache).allocated_bytes)
    return Told(tokens=tokens, finite=finite, distinct=distinct(drawn), allocated=allocated)


def distinct(tokens: Sequence[int]) -> float:
    """Different 4-grams over all 4-grams."""
    grams = list(zip(*(tokens[i:] for i in range(_GRAM)), strict=False))
    return len(set(grams)) / len(grams)


def policies(base: CacheConfig) -> Iterator[tuple[str, CacheConfig]]:
    """The rows that stand beside each other."""
    yield "default", base
    yield "f16", replace(base, keys="f16", values="f16")
    yield "no sinks", replace(base, sinks=0)
    yield "sinks at their true distance", replace(base, turn_sinks=False)


def _nll(logits: mx.array, targets: Sequence[int]) -> Floats:
    rows = np.asarray(logits).astype(np.float64)
    top = rows.max(axis=-1)
    norms = top + np.log(np.exp(rows - top[:, None]).sum(axis=-1))
    found: Floats = norms - rows[np.arange(len(targets)), list(targets)]
    return found


def main() -> None:
    """Print one JSON object a row, as rows come."""
    parser = argparse.ArgumentParser(prog="python -m app.bench.endless", description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--text", type=Path, default=Path("assets/kjv_acts_romans.txt"))
    parser.add_argument("--ctx", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=20000)
    parser.add_argument("--generate", type=int, default=20000)
    args = parser.parse_args()
    loaded = load(args.model)
    ids = loaded.tokenizer.encode(args.text.read_text(encoding="utf-8"))[: args.tokens]
    base = CacheConfig(max_tokens=args.ctx)
    at = samples(len(ids), args.ctx)
    fresh = fresh_likelihoods(loaded.model, ids, args.ctx, at)
    print(f"{len(at)} samples recomputed", file=sys.stderr)
    for name, config in policies(base):
        nll = likelihoods(loaded.model, config, ids)
        row = {
            "row": name,
            "nll": float(nll.mean()),
            "quarters": quarters(nll, fresh, at),
            "tokens": len(ids),
        }
        print(json.dumps(row), flush=True)
    if args.generate:
        told = tell(loaded.model, base, ids[:64], args.generate)
        print(json.dumps(vars(told)), flush=True)


if __name__ == "__main__":
    main()
