"""Launches of a decoded token on a GPU, counted in the graph that MLX makes of it."""

from dataclasses import replace

import mlx.core as mx
import pytest

from kvcache.sight import Sight
from kvcache.snapshot import Snapshot
from kvcache.tiers.gpu import GpuTiers
from models.gguf.tensor_types import TensorType
from tests.gguf_factory import TypeChoice, every_matrix
from tests.metal.launches import (
    as_on_a_gpu,
    launching,
    node,
    of_a_layer,
    of_a_tiny_layer,
    tiny_model,
)

PURE = every_matrix(TensorType.Q4_K)
AFFINE = every_matrix(TensorType.Q4_1)
# Tokens in the cache: some hot ones alone; cold blocks too; a window that has moved. The
# next one completes no block: encoding is counted where it is done.
HELD = {"hot": 29, "cold": 151, "steady": 2500}
MOST_BESIDE_ATTENTION = 11
# Two where keys and values are no longer one array when they are written: the second write,
# and rope of keys apart from queries.
MORE_THAN_LLAMA = {
    "llama-yarn": 0,
    "qwen2": 1,  # biases
    "qwen3": 2 + 2,  # norms of queries and of keys
    "gemma3-full": 2 + 2 + 2,  # the same, and norms after
    "phi3": 0,
    "phi3-long": 2 + 1,  # rope over a part of heads, which multiplies them
    "smollm3": 0,
    "granite": 2,  # what both halves add is scaled
    "olmo2": 2 + 2,
    "mistral3": 2 + 1,  # temperature
    "mistral3-plain": 0,
}
OF_ATTENTION = {"hot": 2, "cold": 3, "steady": 3}


def one_launch(
    _tiers: GpuTiers, q: mx.array, held: Snapshot, _sight: Sight, _scale: float
) -> mx.array:
    """As `GpuTiers.attend_snapshot`, of one launch."""
    tokens = [array for tier in (held.new, held.hot, held.pinned) for array in tier or ()]
    return node([mx.zeros(q.shape, q.dtype)], [q, *tokens])[0]


def mixed(name: str) -> TensorType:
    """Values in another format, as Q4_K_M has them in half of its layers."""
    return TensorType.Q6_K if "attn_v" in name or "ffn_down" in name else TensorType.Q4_K


@pytest.mark.parametrize("types", [PURE, AFFINE], ids=["blocks", "affine"])
@pytest.mark.parametrize("state", HELD)
def test_a_token_takes_few_launches(
    state: str, types: TypeChoice, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = of_a_layer(HELD[state], types).total()
    monkeypatch.setattr(GpuTiers, "attend_snapshot", one_launch)
    rest = of_a_layer(HELD[state], types).total() - 1
    assert rest <= MOST_BESIDE_ATTENTION
    assert whole - rest == OF_ATTENTION[state]


def test_what_the_launches_beside_attention_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GpuTiers, "attend_snapshot", one_launch)
    found = of_a_layer(HELD["steady"], PURE)
    norms_rope_and_attention, products = 2 + 1 + 1, 4
    assert found.pop("Depends") == norms_rope_and_attention + products
    assert found.pop("SliceUpdate") == 1  # the hot ring's keys and values
    assert found.pop("Add") == 2  # residuals
    ((swiglu, count),) = found.items()
    assert swiglu.startswith("CompiledSigmoid")
    assert count == 1


@pytest.mark.parametrize(("name", "more"), MORE_THAN_LLAMA.items())
def test_what_other_networks_add(name: str, more: int) -> None:
    whole = of_a_layer(HELD["cold"], PURE).total()
    assert of_a_tiny_layer(name, HELD["cold"]).total() <= whole + more


def test_a_mixed_file_joins_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values are a product and a write of their own."""
    monkeypatch.setattr(GpuTiers, "attend_snapshot", one_launch)
    pure, mix = (of_a_layer(HELD["cold"], types) for types in (PURE, mixed))
    assert mix - pure == {"Depends": 1, "SliceUpdate": 1}
    assert not pure - mix


def test_mlx_computes_products_of_its_own_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GpuTiers, "attend_snapshot", one_launch)
    blocks, groups = (of_a_layer(HELD["cold"], types) for types in (PURE, AFFINE))
    assert blocks - groups == {"Depends": 4}
    assert groups - blocks == {"QuantizedMatmul": 4}


def test_an_id_becomes_a_vector_by_one_launch() -> None:
    """Scaled, and kept inside the table, whether or not it is there yet."""
    with as_on_a_gpu():
        model = tiny_model(1, every_matrix(TensorType.Q8_0))
        model.config = replace(
            model.config, switches=replace(model.config.switches, embedding_scale=3.0)
        )
        drawn = mx.argmax(mx.zeros((1, 611)), axis=-1)
        mx.eval(drawn)
        assert launching([model.embed(drawn[:, None])]).total() == 1
