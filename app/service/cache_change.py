"""What a change of a running cache cannot do, and what it did, in a line."""

from kvcache import CacheConfig, CachePlan, EmberError, resolve
from kvcache.stats import CacheStats


def require_reached(config: CacheConfig, now: CachePlan) -> None:
    """Raise EmberError where a size that is asked for now is more than this model can have."""
    asked, plan = config.max_tokens, resolve(config, now.shape)
    if plan.capped_from and asked != now.config.max_tokens:
        raise EmberError(
            f"got a window of {asked} tokens, but the model was trained for {plan.shape.context}: "
            "/ctx 0 is all of them; `ember --beyond-context` starts a chat that may have more"
        )
    if plan.hot_capped_from and config.hot != now.config.hot:
        raise EmberError(
            f"got {config.hot} tokens that stay unencoded, expected at most {plan.sizes.hot}: no "
            "more fit the window"
        )


def change_line(before: CachePlan, held: CacheStats, after: CachePlan, now: CacheStats) -> str:
    """What is otherwise, and what became of the tokens that were held."""
    return f"{'; '.join(_changes(before, after)) or 'the cache is as it was'}: {_fate(held, now)}"


def _changes(before: CachePlan, after: CachePlan) -> list[str]:
    told = []
    if after.kv != before.kv:
        told.append(f"older tokens are kept as {after.kv}, not {before.kv}")
    if after.max_tokens != before.max_tokens:
        is_less = after.max_tokens < (after.config.max_tokens or 0)
        why = f" (whole blocks of {after.sizes.block})" if is_less else ""
        told.append(f"the window is {after.max_tokens} tokens{why}, not {before.max_tokens}")
    if after.sizes.hot != before.sizes.hot:
        told.append(f"{after.sizes.hot} tokens stay unencoded, not {before.sizes.hot}")
    if after.sizes.pinned != before.sizes.pinned:
        told.append(
            f"the first {after.sizes.pinned} tokens are never let go, not {before.sizes.pinned}"
        )
    return told


def _fate(held: CacheStats, now: CacheStats) -> str:
    if not held.held:
        return "it holds nothing yet"
    if not now.held:
        return f"its {held.held} tokens are read again with the next question"
    if now.held < held.held:
        return f"{now.held} of its {held.held} tokens are still held, the oldest were let go"
    return f"its {held.held} tokens are still held, {now.cold} of them encoded again"
