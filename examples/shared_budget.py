"""Several chats in one number of bytes: who grows lets its own oldest tokens go."""

import mlx.core as mx

from kvcache import CacheConfig, SharedBudget
from models import load

loaded = load("smollm2")
shared = SharedBudget("8MiB")
config = CacheConfig(hot=64)
chats = {
    name: shared.make_prompt_cache(loaded.model, config) for name in ("a long chat", "a short one")
}
text = loaded.tokenizer.encode("A story that goes on and on. " * 200)
for at in range(0, 1024, 128):
    mx.eval(loaded.model(mx.array([text[at : at + 128]]), chats["a long chat"]))
mx.eval(loaded.model(mx.array([text[:100]]), chats["a short one"]))

for name, chat in chats.items():
    stats = chat[0].stats()
    print(f"{name}: {stats.held} of {stats.total} tokens held")
print(f"{shared.taken / 2**20:.2f} MiB of {shared.budget / 2**20:.0f} are taken")

shared.release(chats.pop("a long chat"))
print(f"{shared.taken / 2**20:.2f} MiB once the long one has ended")
