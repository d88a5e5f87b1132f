"""Tensor types against gguf-py's tables."""

import gguf
import pytest

from models.gguf.tensor_types import TensorType, describe_unsupported


@pytest.mark.parametrize("kind", TensorType)
def test_numbers_names_and_sizes_are_ggml_s(kind: TensorType) -> None:
    theirs = gguf.GGMLQuantizationType(int(kind))
    assert theirs.name == kind.name
    assert gguf.GGML_QUANT_SIZES[theirs] == (kind.block_size, kind.block_bytes)


def test_every_other_ggml_type_is_named() -> None:
    for theirs in gguf.GGMLQuantizationType:
        if theirs.name not in TensorType.__members__:
            assert f"{theirs.name} ({int(theirs)}) is not" in describe_unsupported(int(theirs))
    assert "unknown tensor type (4)" in describe_unsupported(4)
