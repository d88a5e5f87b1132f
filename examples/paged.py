"""Several questions about one text that is read and held once: forks share its pages."""

import mlx.core as mx

from kvcache import BlockPool, PagedKVCache
from models import load

loaded = load("smollm2")
shape = loaded.model.shape
pools = [
    BlockPool.for_budget("1MiB", kv_heads=shape.kv_heads, head_dim=shape.head_dim, page_tokens=4)
    for _ in range(shape.layers)
]
prefix = [PagedKVCache(pool) for pool in pools]
loaded.model(
    mx.array([loaded.tokenizer.encode("Paris, Rome and Madrid are cities. The capital of")]), prefix
)

forks = []
for country in (" France is", " Italy is", " Spain is"):
    fork = [layer.fork() for layer in prefix]
    logits = loaded.model(mx.array([loaded.tokenizer.encode(country)]), fork)
    forks.append(fork)
    print(country + loaded.tokenizer.decode([int(mx.argmax(logits[0, -1]))]))

stats = pools[0].stats()
print(f"{stats.in_use} of {stats.pages} pages are in use, {stats.shared} of them shared")
