"""What a run tells about itself: the JSON object and the one-line summary."""

from typing import Any

from app.console import Answer
from app.engine import Engine
from app.events import Completion, FinishReason
from app.rss import peak_rss
from kvcache.stats import CacheStats

_NOTHING = Completion(
    text="",
    tokens=(),
    prompt_tokens=0,
    reused_tokens=0,
    finish_reason=FinishReason.FAILED,
    ttft_s=0.0,
    prefill_tps=0.0,
    decode_tps=0.0,
)


def as_json(answer: Answer) -> dict[str, Any]:
    """The figures of one answer, with the names of the JSON contract; `error` where it failed."""
    completion = answer.completion or _NOTHING
    error = {} if answer.error is None else {"error": str(answer.error)}
    return {
        "text": completion.text,
        "thinking": completion.thinking,
        "tokens": list(completion.tokens),
        "prompt_tokens": completion.prompt_tokens,
        "reused_tokens": completion.reused_tokens,
        "generated_tokens": len(completion.tokens),
        "thinking_tokens": completion.thinking_tokens,
        "finish_reason": completion.finish_reason.value,
        "ttft_s": round(completion.ttft_s, 4),
        "prefill_tps": round(completion.prefill_tps, 2),
        "decode_tps": round(completion.decode_tps, 2),
        "drafted_tokens": completion.drafts.tried,
        "accepted_tokens": completion.drafts.accepted,
        **error,
    }


def settings_json(engine: Engine) -> dict[str, Any]:
    """What the answers were made with."""
    return {
        "model": engine.loaded.name,
        "backend": engine.plan.backend.value,
        "kv": engine.plan.kv,
        "window": engine.plan.max_tokens,
        "peak_rss_bytes": peak_rss(),
    }


def summary(completion: Completion, stats: CacheStats, most_held: int) -> str:
    """One line for people. most_held: tokens that the cache holds at most."""
    thought = f" ({completion.thinking_tokens} thinking)" if completion.thinking_tokens else ""
    reused = f" ({completion.reused_tokens} reused)" if completion.reused_tokens else ""
    return (
        f"prompt {completion.prompt_tokens} tokens{reused}, {completion.prefill_tps:.1f} tok/s · "
        f"answer {len(completion.tokens)} tokens{thought}, {completion.decode_tps:.1f} tok/s · "
        f"first token {completion.ttft_s:.2f} s · "
        f"window {stats.held}/{most_held}, {stats.held_bytes / 2**20:.1f} MiB"
    )
