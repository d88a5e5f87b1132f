"""A network of mlx-lm's over several processes, each with the cache of its own heads."""

import mlx.core as mx
from mlx_lm.models.llama import Model, ModelArgs

from kvcache import CacheConfig, make_prompt_cache

group = mx.distributed.init()
mx.random.seed(0)  # weights alike on all ranks; yours come from mlx_lm.utils.sharded_load(...)
args = ModelArgs(
    model_type="llama",
    hidden_size=128,
    num_hidden_layers=2,
    intermediate_size=256,
    num_attention_heads=4,
    num_key_value_heads=2,
    rms_norm_eps=1e-5,
    vocab_size=101,
)
model = Model(args)
model.shard(group)  # each rank computes its share of the heads

cache = make_prompt_cache(model, CacheConfig(max_tokens=128, hot=32, block=32))
logits = model(mx.arange(100)[None], cache=cache)
mx.eval(logits)
heads, held = cache[0].kv_heads, cache[0].stats().held
print(f"rank {group.rank()} of {group.size()} holds {held} tokens of {heads} KV heads")
