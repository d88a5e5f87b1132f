import pytest

from app.flag_words import with_flags
from kvcache import CacheConfig, CacheError, EmberError, ModelShape, resolve


def test_arguments_are_said_as_flags() -> None:
    said = with_flags(EmberError("give a larger `budget`, or `hot_dtype`, but `make chat`"))
    assert said == "give a larger --kv-budget, or --hot-dtype, but `make chat`"


def test_what_the_cache_refuses_is_said_as_it_is_typed() -> None:
    shape = ModelShape(layers=1, kv_heads=1, head_dim=64, context=60)
    with pytest.raises(CacheError) as refused:
        resolve(CacheConfig(), shape)
    words = "give smaller --sinks, --keep or --block, or --beyond-context with --ctx 68 or more"
    assert with_flags(refused.value).endswith(words)
