"""Several prompts that begin alike, answered together: the beginning is computed and held once."""

from copy import deepcopy

import mlx.core as mx
from mlx_lm import batch_generate

from kvcache import CacheConfig, allocated_bytes, make_prompt_cache
from models import load
from models.mlx_lm import tokenizer_of

loaded = load("smollm2")
text = "Anna lives in Rome. She has a dog, which is called Rex, and two cats.\n" * 20
endings = ["Anna lives in", "The dog is called", "She has a dog and"]

prefix = make_prompt_cache(loaded.model, CacheConfig(max_tokens=1024))
loaded.model.hidden(mx.array([loaded.tokenizer.encode(text)]), prefix)
forks = [deepcopy(prefix) for _ in endings]
every = [cache for fork in forks for cache in fork]
times = allocated_bytes(every) / allocated_bytes(prefix)
print(f"{prefix[0].offset} tokens in {len(forks)} copies: {times:.1f} times the bytes")

told = batch_generate(
    loaded.model,
    tokenizer_of(loaded),
    [loaded.tokenizer.encode(ending) for ending in endings],
    prompt_caches=forks,
    max_tokens=6,
)
for ending, answer in zip(endings, told.texts, strict=True):
    print(repr(ending + answer))
