"""Blocks in device memory: each byte of the file once, wherever rows come from."""

import numpy as np
import pytest

from models.gguf.tensor_types import TensorType
from models.gpu import blocks as blocks_module
from models.gpu.blocks import Argument, Blocks, Plane
from tests.metal.matrices import BLOCKS_ON_GPU, GRIDS_ON_GPU, ON_GPU, held, rows_of
from tests.models.gguf.blocks import UNQUANTIZED

ROWS, COLUMNS = 7, 768


def memory_of(blocks: Blocks) -> bytes:
    return np.array(blocks.words).tobytes()


@pytest.mark.parametrize("kind", ON_GPU, ids=lambda kind: kind.name)
def test_memory_is_that_of_the_file(kind: TensorType) -> None:
    data = rows_of(kind, rows=ROWS, columns=COLUMNS)
    made = held(kind, data)
    assert made.nbytes == data.nbytes
    end = 4 * int(made.arguments()[Argument.GRID].item())
    assert data.nbytes <= end <= data.nbytes + 16 * len(Plane)
    assert (made.words.nbytes > end) == (kind in GRIDS_ON_GPU)
    assert made.words.nbytes <= end + 2048
    assert np.array_equal(
        np.bincount(np.frombuffer(memory_of(made)[:end], np.uint8), minlength=256)[1:],
        np.bincount(data.flatten(), minlength=256)[1:],
    )


@pytest.mark.parametrize("kind", BLOCKS_ON_GPU, ids=lambda kind: kind.name)
def test_planes_are_the_parts_of_all_blocks(kind: TensorType) -> None:
    data = rows_of(kind, rows=ROWS, columns=COLUMNS)
    made = held(kind, data)
    blocks = data.reshape(-1, kind.block_bytes)
    starts = {plane: made.arguments()[Argument[plane.name]].item() for plane in list(Plane)[1:]}
    memory, at = memory_of(made), 0
    for plane, size in blocks_module._PARTS[kind]:
        start = 4 * int(starts.get(plane, 0))
        assert start % 16 == 0
        part = blocks[:, at : at + size]
        assert memory[start : start + part.size] == part.tobytes()
        at += size
    assert at == kind.block_bytes


@pytest.mark.parametrize("kind", [TensorType.Q6_K, TensorType.Q4_0, TensorType.F16])
def test_rows_come_in_any_pieces(kind: TensorType, monkeypatch: pytest.MonkeyPatch) -> None:
    data = rows_of(kind, rows=ROWS, columns=COLUMNS)
    whole = memory_of(held(kind, data))
    monkeypatch.setattr(blocks_module, "PIECE", 3 * kind.block_bytes)
    made = Blocks.empty(kind, rows=ROWS, columns=COLUMNS)
    made.write(5, data[5:])
    made.part(1, 5).write(0, data[1:5])
    made.write(0, data[:1])
    assert memory_of(made) == whole


@pytest.mark.parametrize("kind", UNQUANTIZED, ids=lambda kind: kind.name)
def test_rows_of_odd_columns_are_held_even(kind: TensorType) -> None:
    data = rows_of(kind, rows=ROWS, columns=64)[:, : 37 * kind.block_bytes].copy()
    made = held(kind, data)
    assert (made.columns, made.held_columns) == (37, 40)
    rows = np.frombuffer(memory_of(made), np.uint8).reshape(ROWS, -1)
    assert np.array_equal(rows[:, : data.shape[1]], data)
    assert not rows[:, data.shape[1] :].any()


def test_parts_share_memory() -> None:
    made = Blocks.empty(TensorType.Q4_K, rows=9, columns=512)
    part = made.part(2, 8).part(1, 3)
    assert part.words is made.words
    assert (part.row, part.rows, part.all_rows, part.nbytes) == (3, 2, 9, 2 * 288)
