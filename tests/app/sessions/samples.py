"""Figures of an answer, as a chat on disk has them."""

from app.sessions.chat import Figures

FIGURES = Figures(
    model="m",
    tokens=7,
    prompt_tokens=31,
    reused_tokens=5,
    finish_reason="stop",
    ttft_s=0.5,
    prefill_tps=100.0,
    decode_tps=42.0,
)
