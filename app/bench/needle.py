"""Is a fact still there once it is in the cold tier?

    python -m app.bench.needle [--needles 24]

A number is placed early in a text; at several lengths the model is asked for it,
its answer is read, and the cache goes back to before the question. Only cases
that the f16 cache answers count.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import mlx.core as mx
import numpy as np

from kvcache import CacheConfig, TwoTierKVCache, make_prompt_cache
from models import load
from models.llama import Model
from models.loader import LoadedModel

LENGTHS = (600, 900, 1200, 1500, 1800, 2100, 2500, 3000)
_CHUNK = 64
_STATEMENT = "\n\nRemember this: the secret number of the {name} is {number}.\n\n"
_QUESTION = (
    "\n\nQuestion: What is the secret number of the {name}?"
    "\nAnswer: The secret number of the {name} is"
)
_NAMES = ("garden", "castle", "river", "library", "mountain", "harbour", "market", "temple")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One question: where the fact stands, how long the text is, and whether it was answered."""

    position: int
    length: int
    answered: bool


def ask(loaded: LoadedModel, config: CacheConfig, filler: Sequence[int], seed: int) -> list[Case]:
    """Place one fact somewhere early in `filler` and ask for it at every length."""
    random = Random(seed)
    name, number = random.choice(_NAMES), f"{random.randrange(10000, 100000)}"
    position = random.randrange(20, 300)
    encode = loaded.tokenizer.encode
    fact = encode(_STATEMENT.format(name=name, number=number), add_special=False)
    text = [*filler[:position], *fact, *filler[position:]]
    question = encode(_QUESTION.format(name=name), add_special=False)
    cache = make_prompt_cache(loaded.model, config)
    cases, done = [], 0
    for length in LENGTHS:
        for start in range(done, length, _CHUNK):
            loaded.model.hidden(mx.array([text[start : min(start + _CHUNK, length)]]), cache)
        done = length
        said = loaded.tokenizer.decode(_answer(loaded.model, cache, question))
        cases.append(Case(position=position, length=length, answered=number in said))
        for layer in cache:
            layer.rewind(layer.offset - length)
        assert cache[0].offset == length, "the question left the hot tier"
    return cases


def _answer(
    model: Model, cache: Sequence[TwoTierKVCache], question: Sequence[int], tokens: int = 8
) -> list[int]:
    """Greedy tokens after the question."""
    logits = model(mx.array([list(question)]), cache)
    said = []
    for _ in range(tokens):
        said.append(int(np.asarray(logits[0, -1]).argmax()))
        logits = model(mx.array([said[-1:]]), cache)
    return said


def main() -> None:
    """Print one JSON object: cases that f16 answers, and the share that each policy keeps."""
    parser = argparse.ArgumentParser(prog="python -m app.bench.needle", description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--text", type=Path, default=Path("assets/kjv_acts_romans.txt"))
    parser.add_argument("--needles", type=int, default=24)
    parser.add_argument("--hot", type=int, default=256)
    parser.add_argument("--kv", action="append", default=[])
    args = parser.parse_args()
    loaded = load(args.model)
    filler = loaded.tokenizer.encode(args.text.read_text(encoding="utf-8"))
    base = CacheConfig(hot=args.hot)
    rows = {f"{base.keys}/{base.values}": base}
    for kv in args.kv:
        keys, _, values = kv.partition("/")
        rows[kv] = replace(base, keys=keys, values=values or keys)
    plain = replace(base, keys="f16", values="f16")
    asked = answered = 0
    kept = dict.fromkeys(rows, 0)
    for seed in range(args.needles):
        start = 97 * seed
        want = ask(loaded, plain, filler[start:], seed)
        asked += len(want)
        answered += sum(case.answered for case in want)
        for name, config in rows.items():
            got = ask(loaded, config, filler[start:], seed)
            kept[name] += sum(
                one.answered and other.answered for one, other in zip(want, got, strict=True)
            )
    shares = {name: count / max(answered, 1) for name, count in kept.items()}
    print(json.dumps({"asked": asked, "answered_by_f16": answered, "kept": shares}))


if __name__ == "__main__":
    main()
