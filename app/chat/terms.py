"""The words on the screen, each in a plain sentence beside what it stands for at the moment."""

from collections.abc import Sequence
from typing import NamedTuple

from app import units
from app.chat.controller import ChatController
from kvcache.stats import CacheStats, sum_layers

_NONE = "–"


class Term(NamedTuple):
    """A word, its value now, and what it means."""

    word: str
    value: str
    meaning: str


def glossary(chat: ChatController) -> list[Term]:
    """All words, in the order in which a token meets them."""
    layers, model, last = chat.layer_stats(), chat.model, chat.last
    stats = sum_layers(layers) if layers else None
    read = last.prompt_tokens if last else 0
    values = {
        "prefill": f"{units.rate(last.prefill_tps)}/s" if last else _NONE,
        "TTFT": units.seconds(last.ttft_s) if last else _NONE,
        "reused": f"{units.count(last.reused_tokens)} of {units.count(read)}" if last else _NONE,
        **_held(stats),
        "codec": model.kv if model else _NONE,
        "ratio": f"{stats.ratio:.2f}x" if stats else _NONE,
    }
    return [Term(word=word, value=values[word], meaning=said) for word, said in _MEANINGS.items()]


def _held(stats: CacheStats | None) -> dict[str, str]:
    words: Sequence[str] = ("sink", "hot", "cold", "evicted")
    return {word: _NONE if stats is None else f"{getattr(stats, word)} tok" for word in words}


_MEANINGS = {
    "prefill": "The model reads what it was asked, so many tokens (pieces of words) a second.",
    "TTFT": "Time to the first token: how long an answer's first word took to come.",
    "reused": "What of the question the model had read before, and need not read again.",
    "sink": "The first tokens of the chat, which models lean on: they always stay (◆).",
    "hot": "The newest tokens, kept as the model made them (█).",
    "cold": "Older tokens, kept in fewer bits so that more of them fit (▒).",
    "evicted": "The oldest tokens, let go to make room: the model sees them no more (×).",
    "codec": "How cold tokens are written: their keys, a slash, their values.",
    "ratio": "How many times as much memory the same tokens would take in 16 bits.",
}
