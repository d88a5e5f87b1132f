"""Bytes and operations by hand: 2 layers, hidden 8, 4 heads over 2 KV heads of 2, ffn 6."""

from dataclasses import replace
from pathlib import Path

import pytest

from app.bench.figures import formulas, published
from app.bench.figures.shapes import LLAMA_2_7B, PHI_2, TINYLLAMA, Network, network_of, token_bytes
from app.bench.sections.memory import plan_of
from kvcache.tiers.ledger import TierSizes
from tests.tiny_files import write_tiny

SMALL = Network(
    name="small",
    layers=2,
    hidden=8,
    ffn=6,
    heads=4,
    kv_heads=2,
    head_dim=2,
    vocabulary=10,
    context=64,
    weight_bytes=1000,
)


def test_cache_bytes_by_hand() -> None:
    # 2 (K, V) * 2 layers * 2 KV heads * 2 = 16 numbers a token
    assert formulas.elements_per_token(SMALL) == 16
    assert formulas.kv_bytes(SMALL, 5) == 160
    assert formulas.kv_bytes(SMALL, 5, bits=4.5) == 45


def test_tier_bytes_by_hand() -> None:
    # 3 pinned and 5 + 4 - 1 hot tokens of 32 bytes, 2 blocks of 4 tokens of 16 * 3 / 8 = 6
    sizes = TierSizes(pinned=3, hot=5, block=4, slots=2)
    assert formulas.tier_bytes(SMALL, {sizes: 2}, cold_bits=3) == 11 * 32 + 8 * 6


@pytest.mark.parametrize("kv", ["f16", "q5", "hkivi4/turbo3u", "kvarn3"])
@pytest.mark.parametrize("network", [TINYLLAMA, LLAMA_2_7B, PHI_2])
def test_the_resolver_agrees_with_the_formula(network: Network, kv: str) -> None:
    plan = plan_of(network, kv, 5000, "reference")
    assert formulas.tier_bytes(network, plan.kinds, cold_bits=plan.cold_bits) == plan.max_bytes
    windows = tuple(None if layer % 3 == 2 else 700 for layer in range(network.layers))
    plan = plan_of(replace(network, windows=windows), kv, 5000, "reference")
    assert formulas.tier_bytes(network, plan.kinds, cold_bits=plan.cold_bits) == plan.max_bytes


def test_windows_hold_and_meet_fewer_tokens() -> None:
    narrow = replace(SMALL, windows=(3, None))
    assert formulas.kv_bytes(narrow, 2) == formulas.kv_bytes(SMALL, 2)
    assert formulas.kv_bytes(narrow, 9) == (3 + 9) * 16
    # At positions 1 to 4: 2, 3, 3, 3 tokens in one layer, 2, 3, 4, 5 in the other.
    whole = formulas.attention_operations(SMALL, 4, 1)
    assert formulas.attention_operations(narrow, 4, 1) * 28 == whole * 25


def test_operations_by_hand() -> None:
    # attention: q and output 8 * 8 each, k and v 8 * 4 each: 192; ffn 3 * 8 * 6 = 144
    assert formulas.token_operations(SMALL) == 2 * 2 * (192 + 144)
    assert formulas.token_operations(replace(SMALL, ffn_matrices=2)) == 2 * 2 * (192 + 96)
    # 3 queries from position 2 meet 3 + 4 + 5 tokens; scores and values 2 * 2 * 8 each
    assert formulas.attention_operations(SMALL, 3, 2) == 12 * 32 * 2
    assert formulas.output_operations(SMALL) == 160


def test_generation_by_hand() -> None:
    found = formulas.generation_operations(SMALL, prompt=2, tokens=2)
    token, meet, out = 1344, 64, 160
    # without: passes of 2 and 3 tokens; with: 2, then 1 at position 2
    assert found.no_cache == 5 * token + (3 + 6) * meet + 2 * out
    assert found.cache == 3 * token + (3 + 3) * meet + 2 * out
    assert found.ratio == pytest.approx(found.no_cache / found.cache)


def test_phi_2_has_its_parameters() -> None:
    """2.78e9 parameters; embedding and biases do not multiply."""
    parameters = (formulas.token_operations(PHI_2) + formulas.output_operations(PHI_2)) / 2
    assert parameters == pytest.approx(2.65e9, rel=0.01)


def test_room_is_two_thirds_less_weights_and_program() -> None:
    assert formulas.cache_room(LLAMA_2_7B, 12_000_000_000) == 8_000_000_000 - 4_481_000_000
    assert formulas.cache_room(LLAMA_2_7B, 4_000_000_000) == 0


def test_published_figures_are_checked() -> None:
    tiny, llama = map(published.verdict, published.FIGURES)
    assert "2.25 MB in f16; it is what f32 would take" in tiny
    assert "52.43 MB in f16" in llama
    assert published.explanations(published.FIGURES[1]) == [
        "4-bit codes without scales",
        "4 KV heads in f32",
        "8 KV heads in f16",
    ]
    right = published.Published(network=TINYLLAMA, tokens=200, stated_bytes=4.5e6)
    assert "is right" in published.verdict(right)


def test_a_file_gives_its_network(tiny_path: object) -> None:
    found = network_of(str(tiny_path))
    assert (found.layers, found.heads, found.kv_heads, found.head_dim) == (3, 6, 2, 16)
    assert (found.hidden, found.ffn, found.vocabulary, found.context) == (96, 160, 611, 128)
    # 8.5 bits for every weight of a matrix (Q8_0)
    matrices = 2 * 611 * 96 + 3 * (96 * 96 * 2 + 2 * 32 * 96 + 3 * 96 * 160)
    assert found.weight_bytes == pytest.approx(matrices * 8.5 / 8, rel=0.02)


def test_a_token_reads_a_table_that_is_the_output_too(tiny_path: Path, tmp_path: Path) -> None:
    table = 611 * 96 // 32 * 34  # Q8_0
    assert token_bytes(str(tiny_path)) == network_of(str(tiny_path)).weight_bytes - table
    tied = str(write_tiny(tmp_path / "tied.gguf", "gemma3"))
    assert token_bytes(tied) == network_of(tied).weight_bytes
