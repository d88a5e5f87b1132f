"""Bytes and operations by formula, from dimensions alone. Nothing here measures or allocates."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from app import memory
from app.bench.figures.shapes import Network
from kvcache.tiers.ledger import TierSizes


def kv_bytes(network: Network, tokens: int, *, bits: float = 16.0) -> float:
    """Keys and values of `tokens` in all layers: 2 x layers x KV heads x head dim x bits / 8.

    A layer with a window has no more than that sees.
    """
    held = sum(
        layers * (tokens if window is None else min(tokens, window))
        for window, layers in network.shape.sights.items()
    )
    return elements_per_token(network) * held * bits / 8 / network.layers


def elements_per_token(network: Network) -> int:
    """Numbers of keys and values of a token in all layers."""
    return 2 * network.layers * network.kv_heads * network.head_dim


def tier_bytes(network: Network, kinds: Mapping[TierSizes, int], *, cold_bits: float) -> float:
    """A full two-tier cache: pinned and hot tokens in f16, cold ones in `cold_bits`.

    kinds: how many layers have such tiers.
    """
    bits = sum(
        layers * (16 * (sizes.pinned + sizes.ring) + cold_bits * sizes.slots * sizes.block)
        for sizes, layers in kinds.items()
    )
    return elements_per_token(network) * bits / 8 / network.layers


def cache_room(network: Network, memory_bytes: int) -> int:
    """Bytes left for a cache on a Mac of so much memory; 0 where the weights do not fit."""
    return memory.cache_room(int(memory_bytes * memory.WIRED_SHARE), network.weight_bytes)


# -- operations: a multiplication and an addition count as two --


def token_operations(network: Network) -> int:
    """Per token through all layers, attention to other tokens and the output layer apart."""
    held = network.kv_heads * network.head_dim
    query = network.heads * network.head_dim
    attention = network.hidden * (2 * query + 2 * held)  # q, output, k, v
    ffn = network.ffn_matrices * network.hidden * network.ffn
    return 2 * network.layers * (attention + ffn)


def attention_operations(network: Network, queries: int, position: int) -> int:
    """`queries` tokens from `position` on, each meeting itself and all that it sees before it."""
    met = sum(
        layers * (_met(queries, position) - _met(queries, position - (window or math.inf)))
        for window, layers in network.shape.sights.items()
    )
    return 4 * network.heads * network.head_dim * int(met)  # scores, then values


def _met(queries: int, position: float) -> float:
    """Of `queries` tokens from `position` on, each itself and all before it; those below 0 none."""
    last = max(0, position + queries)
    first = max(0, position)
    return (last * (last + 1) - first * (first + 1)) // 2


def output_operations(network: Network) -> int:
    """Logits of one token."""
    return 2 * network.hidden * network.vocabulary


def step_operations(network: Network, queries: int, position: int) -> int:
    """One pass of `queries` tokens from `position` on that gives the next token."""
    return (
        queries * token_operations(network)
        + attention_operations(network, queries, position)
        + output_operations(network)
    )


@dataclass(frozen=True, kw_only=True)
class Operations:
    """Of generating some tokens after a prompt, without and with a cache."""

    no_cache: int
    cache: int

    @property
    def ratio(self) -> float:
        """How many times fewer with the cache."""
        return self.no_cache / self.cache


def generation_operations(network: Network, *, prompt: int, tokens: int) -> Operations:
    """Each of `tokens` from all tokens before it anew, or from one new token and the cache."""
    return Operations(
        no_cache=sum(step_operations(network, prompt + done, 0) for done in range(tokens)),
        cache=step_operations(network, prompt, 0)
        + sum(step_operations(network, 1, prompt + done) for done in range(tokens - 1)),
    )
