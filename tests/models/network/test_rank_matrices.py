"""A network that ranks share says what one process says, each holding about its share."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from kvcache import EmberError
from models.gguf.tensor_types import TensorType
from models.loader import load
from tests.architectures import Shape, write_network
from tests.gguf_factory import sentencepiece_tokenizer
from tests.local_ranks import ROOT, told_by_ranks
from tests.tiny_files import SEED, TINY, VOCABULARY

_RANK = [sys.executable, "-m", "tests.models.network.rank"]
# Of the seven blocks of 32 rows of feed-forward, ranks have unlike numbers.
_SIZES: dict[str, Any] = {"layers": 2, "heads": 6, "kv_heads": 6, "head_dim": 64, "ffn": 224}
_LIKE = {
    **{name: TINY[name] for name in ("llama", "llama-tied-biases", "mistral3", "qwen2", "qwen3")},
    **{name: TINY[name] for name in ("gemma3", "phi3", "smollm3", "granite", "olmo2-window")},
}
_REFERENCE = [f"{name}-reference" for name in _LIKE]
_CPU = [f"{name}-cpu" for name in ("llama-tied-biases", "gemma3", "olmo2-window")]
NAMES = [*_REFERENCE, *_CPU, "quantized-reference", "quantized-cpu"]


def shape_of(name: str) -> Shape:
    """Of a tiny file's architecture, in sizes that two and three ranks can share."""
    like = _LIKE.get(name, TINY["llama"])
    keys = {key: value for key, value in like.keys.items() if not key.endswith("_pattern")}
    if "rope.dimension_count" in keys:
        keys["rope.dimension_count"] = 48 if like.architecture == "phi3" else 64
    biases = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    return replace(like, **_SIZES, keys=keys, biases=biases if like.biases else ())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All files, and the logits of one process."""
    made = tmp_path_factory.mktemp("ranks")
    for name in NAMES:
        kind = TensorType.Q8_0 if name.startswith("quantized") else TensorType.F32
        tokens = sentencepiece_tokenizer(VOCABULARY)
        path = made / f"{name}.gguf"
        shape = shape_of(name.rpartition("-")[0])
        write_network(path, shape, kind=kind, tokenizer_metadata=tokens, seed=SEED)
    return made


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, dict[str, int]]:
    """What one process holds of each file, whose logits it has written."""
    command = [*_RANK, str(folder), *NAMES]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    found: dict[str, dict[str, int]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("count", [2, 3])
def test_ranks_say_what_one_process_says_and_hold_their_share(
    count: int, folder: Path, alone: dict[str, dict[str, int]]
) -> None:
    told = told_by_ranks([*_RANK, str(folder), *NAMES], count, folder)
    every = [json.loads(out) for out in told]
    for name in NAMES:
        wanted = np.load(folder / f"{name}-1-0.npy")
        assert np.abs(wanted).max() > 1
        for rank in range(count):
            found = np.load(folder / f"{name}-{count}-{rank}.npy")
            # Kernels round activations to int8: numbers next to each other may part.
            most = 0.05 if name == "quantized-cpu" else 1e-4
            assert np.abs(found - wanted).max() <= most, (name, rank)
        check_bytes([each[name] for each in every], alone[name])


def check_bytes(ranks: list[dict[str, int]], alone: dict[str, int]) -> None:
    """All together hold each matrix once, and nobody much more than the others."""
    whole = alone["mapped"] + alone["own"]
    held = [each["mapped"] + each["own"] for each in ranks]
    assert sum(held) == whole
    # Where the ranks do not divide seven blocks, some have one more.
    assert max(held) < 1.2 * whole / len(ranks)
    for each, own in zip(ranks, held, strict=True):
        # Norms, which all have, are said too.
        assert own <= each["said"] < 1.05 * own
        # Of the mapped file only columns are copied.
        assert each["own"] == own or 0 < each["own"] < each["mapped"]


def test_a_group_of_one_is_none(folder: Path) -> None:
    loaded = load(folder / "llama-reference.gguf", group=mx.distributed.init())
    assert loaded.group is None
    with pytest.raises(EmberError, match="got group='two', expected what"):
        load(folder / "llama-reference.gguf", group="two")
