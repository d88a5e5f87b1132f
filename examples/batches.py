"""Prompts of unequal length in one batch: padded on the left, and padding is never held."""

import mlx.core as mx

from kvcache import CacheConfig, make_rows_cache
from models import load

loaded = load("smollm2")
prompts = [
    loaded.tokenizer.encode(text)
    for text in ("The capital of France is", "Water freezes at zero degrees", "Two and two is")
]
longest = max(map(len, prompts))
padding = [longest - len(ids) for ids in prompts]
cache = make_rows_cache(loaded.model, CacheConfig(max_tokens=256), left_padding=padding)

batch = mx.array([[0] * pad + ids for pad, ids in zip(padding, prompts, strict=True)])
said: list[list[int]] = [[] for _ in prompts]
for _ in range(3):
    best = mx.argmax(loaded.model(batch, cache)[:, -1], axis=-1)
    for row, tokens in enumerate(said):
        tokens.append(int(best[row]))
    batch = best[:, None]

for ids, tokens in zip(prompts, said, strict=True):
    print(repr(loaded.tokenizer.decode(ids + tokens)))
print(cache[0].extract(2).stats().total, "tokens held of the third")
