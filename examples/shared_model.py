"""One GGUF model over several processes: each loads its share of every matrix."""

import mlx.core as mx

from kvcache import CacheConfig, make_prompt_cache
from models import load

group = mx.distributed.init()
loaded = load("smollm2", group=group)
cache = make_prompt_cache(loaded.model, CacheConfig(max_tokens=512))

ids = loaded.tokenizer.encode("The capital of France is")
logits = loaded.model(mx.array([ids]), cache)[0, -1]
word = loaded.tokenizer.decode([int(logits.argmax())])
share = f"{loaded.weight_bytes / 1e6:.0f} MB, KV heads: {cache[0].kv_heads}"
print(f"rank {group.rank()} of {group.size()}: {share}: The capital of France is{word}")
