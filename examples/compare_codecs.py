"""What codecs cost, and what they lose of a model's own keys and values."""

import mlx.core as mx

from kvcache import CacheConfig, codec, make_prompt_cache
from models import load

loaded = load("smollm2")
text = "A cache that is bounded in bytes keeps the newest tokens as they are. " * 8
cache = make_prompt_cache(loaded.model, CacheConfig(max_tokens=256))
loaded.model(mx.array([loaded.tokenizer.encode(text)[:96]]), cache)
held = cache[22].keys(), cache[22].values()  # of one layer, [1, heads, tokens, 64]
keys, values = (each[:, :, 32:].astype(mx.float32) for each in held)  # a block of 64 tokens


def error(name: str, block: mx.array) -> float:
    """Of the decoded block, relative to the block."""
    one = codec(name)
    lost = one.decode(one.encode(block)) - block
    return float(mx.linalg.norm(lost) / mx.linalg.norm(block))


for name in ("q4", "kvarn4", "hkivi4", "turbo4u"):
    bits = codec(name).bits_per_element(tokens=64, dim=64)
    print(
        f"{name}: {bits} bits, keys {error(name, keys):.0%}, values {error(name, values):.0%} off"
    )
