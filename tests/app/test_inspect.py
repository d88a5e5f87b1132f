"""`ember inspect`: what a file says of itself, and what it would take."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from models.gguf.tensor_types import TensorType
from tests.app.conftest import Ember, write_tiny
from tests.architectures import Shape, write_network
from tests.gguf_factory import sentencepiece_tokenizer
from tests.tiny_files import TINY as NETWORKS
from tests.tiny_files import write_tiny as write_tiny_network


def test_inspect_reads_the_header(ember: Ember, tiny_path: Path) -> None:
    found = json.loads(ember("inspect", tiny_path, "--json").out)
    assert found["bytes"] == tiny_path.stat().st_size
    assert found["metadata"]["llama.block_count"] == 3
    assert found["metadata"]["tokenizer.ggml.tokens"].startswith("array of 611")
    by_name = {tensor["name"]: tensor for tensor in found["tensors"]}
    assert by_name["blk.2.ffn_down.weight"]["shape"] == [96, 160]
    assert by_name["blk.2.ffn_down.weight"]["type"] == "Q8_0"
    # 3 layers * 2 (K, V) * 2 KV heads * 16 dims * 2 bytes
    assert found["memory"]["kv_bytes_per_token"] == 384
    assert found["memory"]["kv_bytes_by_window"] == {"128": 384 * 128}
    assert found["switches"] == []
    usual = found["sampling"]["usual"]
    assert (usual["temp"], usual["top_p"], usual["min_p"]) == (0.7, 0.95, 0.05)
    text = ember("inspect", tiny_path).out
    assert "sampling in the chat\n  usual               temp 0.7, top_p 0.95, top_k 0," in text
    assert "blk.0.attn_q.weight" in text
    assert "what differs from Llama\n  nothing\n" in text


def test_inspect_says_what_each_rank_would_hold(ember: Ember, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", TensorType.F32)
    found = json.loads(ember("inspect", path, "--ranks", 2, "--json").out)
    whole, ranks = found["memory"]["weight_bytes"], found["ranks"]
    assert [(each["heads"], each["kv_heads"], each["ffn"]) for each in ranks] == [(3, 1, 80)] * 2
    assert 0 < sum(each["weight_bytes"] for each in ranks) - whole < whole / 50  # norms
    assert len({each["kv_bytes_per_1000_tokens"] for each in ranks}) == 1
    assert "\n  rank 1  " in ember("inspect", path, "--ranks", 2).out
    refused = ember("inspect", path, "--ranks", 3)
    assert refused.error_line().endswith("give it 2 ranks, or 1")


@pytest.mark.parametrize(
    ("name", "switches"),
    [
        ("qwen2", ["half-split rope", "biases of attn_q, attn_k, attn_v"]),
        (
            "gemma3-linear",
            [
                "half-split rope",
                "4 layers see 37 tokens",
                "their rope's base 20000",
                "queries and keys normed over each head",
                "norms before and after",
                "GELU",
                "embedding scale 9.79796",
                "rope stretched 8 times",
                "output tied to the embeddings",
            ],
        ),
        (
            "phi3-long",
            [
                "half-split rope",
                "gate and up fused",
                "rope over 96 of 128 dimensions",
                "queries and keys multiplied by 1.25 where they turn",
                "fused attn_qkv",
                "frequency factors of rope for short and long windows",
                "output tied to the embeddings",
            ],
        ),
        (
            "mistral3",
            [
                "attention temperature 0.375",
                "rope stretched 4 times by YaRN from 64 tokens",
                "queries and keys multiplied by 1.1 where they turn",
            ],
        ),
        (
            "granite-unturned",
            ["4 layers without rope", "logits divided by 1.5"],
        ),
        (
            "olmo2",
            [
                "half-split rope",
                "queries and keys normed over all heads",
                "norms after instead of before",
            ],
        ),
    ],
)
def test_inspect_says_what_a_network_does(
    ember: Ember, tmp_path: Path, name: str, switches: list[str]
) -> None:
    path = write_tiny_network(tmp_path / "tiny.gguf", name)
    assert json.loads(ember("inspect", path, "--json").out)["switches"] == switches
    assert "\n  ".join(["what differs from Llama", *switches]) in ember("inspect", path).out


def test_inspect_counts_each_layer_as_it_is(ember: Ember, tmp_path: Path) -> None:
    path = write_tiny_network(tmp_path / "gemma3.gguf", "gemma3")
    memory = json.loads(ember("inspect", path, "--json").out)["memory"]
    kinds = {kind["window"]: kind for kind in memory["kv_layers"]}
    assert kinds.keys() == {None, 37}
    layers = {window: kind["layers"] for window, kind in kinds.items()}
    one = memory["kv_bytes_per_token"] // sum(layers.values())
    assert memory["kv_bytes_by_window"] == {
        str(tokens): one * (layers[None] * tokens + layers[37] * 37) for tokens in (2048, 4096)
    }
    assert memory["kv_bytes"] == sum(kind["bytes"] for kind in kinds.values())
    assert kinds[37]["bytes"] == one * layers[37] * (37 + 63)
    shown = ember("inspect", path).out
    assert f"{layers[37]} layers that see 37 tokens, 100 held" in shown
    assert f"{layers[None]} layers that see all tokens" in shown


def test_inspect_predicts_the_loaded_weights(ember: Ember, tiny_path: Path) -> None:
    from models import load

    found = json.loads(ember("inspect", tiny_path, "--json").out)
    assert found["memory"]["weight_bytes"] == load(tiny_path).weight_bytes


def _write(path: Path, shape: Shape) -> Path:
    tokenizer = sentencepiece_tokenizer(shape.vocab)
    write_network(path, shape, kind=TensorType.F32, tokenizer_metadata=tokenizer, seed=7)
    return path


def test_what_sees_pictures_counts_in_no_weights(ember: Ember, tmp_path: Path) -> None:
    from app.bench.figures.shapes import network_of
    from app.model_list import ListedModel, cost_of
    from models import load

    pictures = {"v.blk.0.ln1.weight": (1.0,) * 1009, "mm.soft_emb_norm.weight": (1.0,) * 503}
    path = _write(tmp_path / "seeing.gguf", replace(NETWORKS["gemma3"], layers=2, vectors=pictures))
    loaded = load(path).weight_bytes
    told = ember("inspect", path, "--json")
    assert json.loads(told.out)["memory"]["weight_bytes"] == loaded
    assert "ember: 2 tensors that see pictures are left out: text only\n" in told.err
    chosen = ListedModel(spec="seeing", size=path.stat().st_size, about="", path=path)
    assert cost_of(chosen).weight_bytes == loaded
    assert network_of(str(path)).weight_bytes == loaded


def test_inspect_shows_what_cannot_be_run_and_why(ember: Ember, tmp_path: Path) -> None:
    path = _write(tmp_path / "cut.gguf", replace(NETWORKS["llama"], keys={"block_count": 5}))
    told = ember("inspect", path)
    assert (told.code, "blk.2.ffn_down.weight" in told.out) == (0, True)
    assert "ember: it cannot be run: tensor 'blk.3.attn_norm.weight' is missing" in told.err
