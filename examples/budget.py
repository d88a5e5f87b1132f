"""How many tokens a number of bytes holds: known before a model is loaded."""

from kvcache import CacheConfig, ModelShape, resolve

llama_2_7b = ModelShape(layers=32, kv_heads=32, head_dim=128, context=4096)

for keys, values in (("f16", "f16"), ("q8", "q8"), ("hkivi4", "turbo4u")):
    config = CacheConfig.for_budget("512MiB", keys=keys, values=values)
    plan = resolve(config, llama_2_7b)
    print(f"{plan.kv}: {plan.max_tokens} tokens, {plan.max_bytes / 2**20:.1f} MiB")
