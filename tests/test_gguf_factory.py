"""The files that other tests rely on look like the real ones."""

from pathlib import Path

import pytest

from models.gguf.file import GGUFFile
from models.gguf.tensor_types import TensorType
from tests.gguf_factory import (
    LLAMA_2_7B,
    TINYLLAMA,
    LlamaShape,
    every_matrix,
    q4_k_m,
    sentencepiece_tokenizer,
    write_llama,
)


def test_q4_k_m_picks_the_layers_llama_cpp_picks() -> None:
    choose = q4_k_m(TINYLLAMA)
    fine = [i for i in range(22) if choose(f"blk.{i}.attn_v.weight") is TensorType.Q6_K]
    assert fine == [0, 1, 4, 7, 10, 13, 16, 19, 20, 21]
    assert choose("blk.4.ffn_down.weight") is TensorType.Q6_K
    assert choose("blk.4.ffn_up.weight") is TensorType.Q4_K
    assert choose("output.weight") is TensorType.Q6_K
    assert choose("token_embd.weight") is TensorType.Q4_K


@pytest.mark.parametrize("size", [307, LLAMA_2_7B.vocab])
def test_pieces_are_distinct_and_join_from_shorter_ones(size: int) -> None:
    pieces = sentencepiece_tokenizer(size)["tokenizer.ggml.tokens"]
    assert isinstance(pieces, list)
    assert len(pieces) == len(set(pieces)) == size
    assert pieces[:4] == ["<unk>", "<s>", "</s>", "<0x00>"]
    known = set(pieces[259:])
    for piece in known:
        joints = range(1, len(piece))
        assert len(piece) == 1 or any(piece[:at] in known and piece[at:] in known for at in joints)


def test_tied_files_leave_out_the_output_and_repeat_with_their_seed(tmp_path: Path) -> None:
    shape = LlamaShape(
        layers=1, width=64, ffn=96, heads=2, kv_heads=1, vocab=300, context=32, tied=True
    )
    paths = [tmp_path / name for name in ("a.gguf", "b.gguf", "c.gguf")]
    for path, seed in zip(paths, (1, 1, 2), strict=True):
        write_llama(
            path,
            config=shape,
            types=every_matrix(TensorType.Q8_0),
            tokenizer_metadata=sentencepiece_tokenizer(300),
            seed=seed,
        )
    contents = [path.read_bytes() for path in paths]
    assert contents[0] == contents[1] != contents[2]
    with GGUFFile(paths[0]) as file:
        assert "output.weight" not in file.tensors
        assert file.tensors["blk.0.attn_k.weight"].shape == (32, 64)
        assert file.metadata.get_int("llama.attention.head_count_kv") == 1
