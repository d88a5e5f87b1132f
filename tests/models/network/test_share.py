"""Which part of each tensor a rank takes, and which numbers of ranks are refused."""

from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest

from models.gguf.file import GGUFFile
from models.gguf.header import TensorInfo
from models.gguf.tensor_types import TensorType
from models.network.config import NetworkConfig
from models.network.shapes import tensors_to_read
from models.network.share import Share, Split, UnevenError, sizes
from tests.architectures import Shape, write_network
from tests.gguf_factory import sentencepiece_tokenizer
from tests.tiny_files import SEED, TINY, VOCABULARY

SIX = replace(TINY["llama-tied-biases"], layers=1, heads=12, kv_heads=6)


def written(
    path: Path, shape: Shape, kind: TensorType = TensorType.F32
) -> tuple[NetworkConfig, dict[str, TensorInfo]]:
    """Its dimensions and entries."""
    tokens = sentencepiece_tokenizer(VOCABULARY)
    write_network(path, shape, kind=kind, tokenizer_metadata=tokens, seed=SEED)
    with GGUFFile(path) as file:
        config = NetworkConfig.from_metadata(file.metadata)
        return config, tensors_to_read(file, config)


def shares(config: NetworkConfig, entries: dict[str, TensorInfo], size: int) -> list[Share]:
    return [Share.of(config, entries, rank=rank, size=size) for rank in range(size)]


@pytest.mark.parametrize("kind", [TensorType.F32, TensorType.Q8_0])
@pytest.mark.parametrize("size", [2, 3, 6])
def test_ranks_take_every_byte_of_a_matrix_once(
    size: int, kind: TensorType, tmp_path: Path
) -> None:
    config, entries = written(tmp_path / "six.gguf", SIX, kind)
    every = shares(config, entries, size)
    for name, info in entries.items():
        parts = [share.entries(entries)[name] for share in every]
        if every[0].split(name) is Split.WHOLE:
            assert parts == [info] * size
            continue
        rows = chain.from_iterable(
            range(
                part.offset + row * (part.step or part.row_bytes),
                part.offset + row * (part.step or part.row_bytes) + part.row_bytes,
            )
            for part in parts
            for row in range(part.rows)
        )
        assert sorted(rows) == list(range(info.offset, info.offset + info.nbytes)), name


def test_the_network_of_a_rank_has_its_heads_and_its_rows(tmp_path: Path) -> None:
    config, entries = written(tmp_path / "six.gguf", SIX, TensorType.Q8_0)
    found = [share.config for share in shares(config, entries, 3)]
    assert [(each.heads, each.kv_heads, each.hidden) for each in found] == [(4, 2, 192)] * 3
    assert [each.ffn for each in found] == [64, 64, 96]  # seven blocks of 32
    assert [each.shape.kv_heads for each in found] == [2] * 3


@pytest.mark.parametrize(
    ("shape", "kind", "possible"),
    [
        (SIX, TensorType.Q8_0, [1, 2, 3, 6]),
        (replace(SIX, heads=9, kv_heads=3), TensorType.F32, [1, 3]),
        (replace(SIX, kv_heads=1), TensorType.F32, [1]),
        # Blocks of 32 columns: heads of 16 go in pairs.
        (replace(SIX, heads=6, head_dim=16, keys={}), TensorType.Q8_0, [1, 3]),
        (replace(SIX, ffn=64), TensorType.Q8_0, [1, 2]),
        (replace(SIX, ffn=64), TensorType.F32, [1, 2, 3, 6]),
    ],
)
def test_how_many_ranks_can_share(
    shape: Shape, kind: TensorType, possible: list[int], tmp_path: Path
) -> None:
    assert sizes(*written(tmp_path / "six.gguf", shape, kind)) == possible


def test_a_number_of_ranks_that_cannot_share_is_told_those_that_can(tmp_path: Path) -> None:
    config, entries = written(tmp_path / "six.gguf", SIX)
    said = r"4 ranks cannot share this model \(12 heads over 6 KV heads, 224 rows of .*\): "
    with pytest.raises(UnevenError, match=said + "give it 6 ranks, or 1 or 2 or 3"):
        Share.of(config, entries, rank=0, size=4)
    config, entries = written(tmp_path / "one.gguf", replace(SIX, kv_heads=1))
    with pytest.raises(UnevenError, match=r"give it 1 rank$"):
        Share.of(config, entries, rank=0, size=2)
