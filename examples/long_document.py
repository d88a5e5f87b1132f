"""A document many times as long as its window, read in fixed memory, and a question about it."""

import mlx.core as mx

from kvcache import CacheConfig, make_prompt_cache
from models import load

loaded = load("smollm2")
encode = loaded.tokenizer.encode
task = encode("Note: the code word is BLUE HERON. Here is a long report.\n")
report = encode("The harbour was quiet, and the boats came home one after the other. " * 60)
question = encode("\nNote: the code word is")

# `keep`: as many first tokens as never go, whatever else is let go.
config = CacheConfig.for_budget("6MiB", keep=len(task), hot=64)
cache = make_prompt_cache(loaded.model, config)
ids = [*task, *report, *question]
for start in range(0, len(ids), 128):  # a step at a time: what it computes with is bounded too
    logits = loaded.model(mx.array([ids[start : start + 128]]), cache)
    mx.eval(logits)

answer: list[int] = []
while len(answer) < 4:
    answer.append(int(mx.argmax(logits[0, -1])))
    logits = loaded.model(mx.array([answer[-1:]]), cache)
stats = cache[0].stats()
size = sum(layer.nbytes for layer in cache) / 2**20
print(f"{len(ids)} tokens read, {stats.evicted} let go, {size:.1f} MiB taken")
print("the code word is" + loaded.tokenizer.decode(answer))
