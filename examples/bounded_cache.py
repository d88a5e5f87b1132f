"""A text many times as long as its window, in mlx-lm's own loop, in memory that stops growing."""

import mlx.core as mx
from mlx_lm.generate import generate_step

from kvcache import CacheConfig, make_prompt_cache
from models import load

loaded = load("smollm2")
cache = make_prompt_cache(loaded.model, CacheConfig(max_tokens=128, hot=32, block=32))
prompt = mx.array(loaded.tokenizer.encode("Once upon a time"))

for _ in generate_step(prompt, loaded.model, prompt_cache=cache, max_tokens=300):
    stats = cache[0].stats()
    if stats.total % 60 == 0:
        size = sum(layer.nbytes for layer in cache) / 2**20
        print(f"{stats.total} tokens, {stats.evicted} let go: {stats.held} held in {size:.2f} MiB")
