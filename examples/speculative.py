"""mlx-lm's speculative decoding over a bounded cache: a draft changes the speed, and no token."""

import mlx.core as mx
from mlx_lm.generate import generate_step, speculative_generate_step

from kvcache import CacheConfig, make_prompt_cache
from models import load

loaded = load("smollm2")
draft = load("smollm2")  # a smaller model of the same vocabulary, where there is one
config = CacheConfig(max_tokens=160, hot=32, block=32, slack=8)  # slack: tokens to take back
prompt = mx.array(loaded.tokenizer.encode("Once upon a time there was a"))

plain = [
    int(token)
    for token, _ in generate_step(
        prompt,
        loaded.model,
        prompt_cache=make_prompt_cache(loaded.model, config),
        max_tokens=200,
    )
]
caches = [*make_prompt_cache(loaded.model, config), *make_prompt_cache(draft.model, config)]
steps = list(
    speculative_generate_step(
        prompt,
        loaded.model,
        draft.model,
        num_draft_tokens=3,
        prompt_cache=caches,
        max_tokens=200,
    )
)
print([int(token) for token, *_ in steps] == plain)
print(sum(from_draft for *_, from_draft in steps) > 100, caches[0].stats().evicted)
