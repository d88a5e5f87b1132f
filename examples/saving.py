"""A text read once, saved, and gone on with later."""

import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import save_prompt_cache

from kvcache import CacheConfig, load_prompt_cache, make_prompt_cache
from models import load

loaded = load("smollm2")
cache = make_prompt_cache(loaded.model, CacheConfig.for_budget("16MiB"))
ids = loaded.tokenizer.encode("The capital of France is")
loaded.model(mx.array([ids[:-1]]), cache)
save_prompt_cache("france.safetensors", cache)

# Later, in another process: the model reads only what is new.
restored = load_prompt_cache("france.safetensors")
print(f"{restored[0].offset} tokens restored")
last = mx.array(ids[-1:])
for token, _ in generate_step(last, loaded.model, prompt_cache=restored, max_tokens=1):
    print(loaded.tokenizer.decode([int(token)]))
