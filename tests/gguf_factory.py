"""GGUF files with random weights, for tests and measurements: Llama-shaped, or as one is told.

Written by gguf-py and quantized by libgguf, neither of which ember uses to
read them. The rows of `attn_q` and `attn_k` are in ggml's interleaved order,
as in any file of this architecture; with random weights nothing tells.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Protocol

import gguf
import libgguf
import numpy as np
import numpy.typing as npt

from models.gguf.tensor_types import TensorType

# Distinct rows per tensor; larger tensors repeat them in random order, so that
# a file of gigabytes takes seconds of quantizing.
_POOL_ROWS = 128

MetadataItem = bool | int | float | str | Sequence[str] | Sequence[int] | Sequence[float]
TypeChoice = Callable[[str], TensorType]
# Bytes of a tensor by name and shape.
TensorData = Callable[[str, tuple[int, ...]], npt.NDArray[np.uint8]]


@dataclass(frozen=True, kw_only=True)
class LlamaShape:
    """Dimensions of a Llama; `tied` leaves out `output.weight`."""

    layers: int
    width: int
    ffn: int
    heads: int
    kv_heads: int
    vocab: int
    context: int
    rope_base: float = 10000.0
    tied: bool = False
    rope_freqs: bool = False

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


TINYLLAMA = LlamaShape(
    layers=22, width=2048, ffn=5632, heads=32, kv_heads=4, vocab=32000, context=2048
)
LLAMA_2_7B = LlamaShape(
    layers=32, width=4096, ffn=11008, heads=32, kv_heads=32, vocab=32000, context=4096
)


def every_matrix(kind: TensorType) -> TypeChoice:
    """The same type for all matrices."""
    return lambda name: kind


class Layered(Protocol):
    """Dimensions on which the types of llama.cpp's mixes depend."""

    @property
    def layers(self) -> int: ...

    @property
    def tied(self) -> bool: ...


def q4_k_m(config: Layered) -> TypeChoice:
    """llama.cpp's Q4_K_M: Q6_K where errors hurt most, Q4_K elsewhere."""
    last = "token_embd.weight" if config.tied else "output.weight"
    edge = config.layers // 8

    def choose(name: str) -> TensorType:
        if name == last:
            return TensorType.Q6_K
        if name.endswith(("attn_v.weight", "ffn_down.weight")):
            layer = int(name.split(".")[1])
            at_edge = layer < edge or layer >= 7 * config.layers // 8
            return TensorType.Q6_K if at_edge or (layer - edge) % 3 == 2 else TensorType.Q4_K
        return TensorType.Q4_K

    return choose


def write_llama(
    path: Path,
    *,
    config: LlamaShape,
    types: TypeChoice,
    tokenizer_metadata: Mapping[str, MetadataItem],
    seed: int,
    matrix: TensorData | None = None,
) -> None:
    """Write a complete file; one tensor at a time is in memory.

    matrix: what matrices hold, instead of random numbers that were quantized.
    """
    rng = np.random.default_rng(seed)

    def data(name: str, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        if name == "rope_freqs.weight":
            return np.linspace(1, 8, shape[0], dtype=np.float32).view(np.uint8)
        if matrix is not None and len(shape) == 2:
            return matrix(name, shape)
        return random_tensor(shape, _type_of(shape, name, types), rng)

    write_file(
        path,
        architecture="llama",
        metadata={**_model_metadata(config), **tokenizer_metadata},
        shapes=dict(_tensor_shapes(config)),
        types=types,
        data=data,
    )


def write_file(
    path: Path,
    *,
    architecture: str,
    metadata: Mapping[str, MetadataItem],
    shapes: Mapping[str, tuple[int, ...]],
    types: TypeChoice,
    data: TensorData,
) -> None:
    """Write a complete file of any architecture; one tensor at a time is in memory.

    shapes: of the tensors, rows first, in the file's order. types: of those with rows;
    vectors are F32.
    """
    writer = _with_header(path, architecture, metadata, shapes, types)
    for name, shape in shapes.items():
        writer.write_tensor_data(data(name, shape))
    writer.close()


def write_hollow_llama(
    path: Path,
    *,
    config: LlamaShape,
    types: TypeChoice,
    tokenizer_metadata: Mapping[str, MetadataItem],
) -> None:
    """Write a complete header; the weights are a hole, which takes no disk."""
    metadata = {**_model_metadata(config), **tokenizer_metadata}
    writer = _with_header(path, "llama", metadata, dict(_tensor_shapes(config)), types)
    writer.close()
    padded = (
        -(-_nbytes(shape, _type_of(shape, name, types)) // writer.data_alignment)
        for name, shape in _tensor_shapes(config)
    )
    os.truncate(path, path.stat().st_size + sum(padded) * writer.data_alignment + 32)


def _with_header(
    path: Path,
    architecture: str,
    metadata: Mapping[str, MetadataItem],
    shapes: Mapping[str, tuple[int, ...]],
    types: TypeChoice,
) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, architecture)
    if isinstance(alignment := metadata.get("general.alignment"), int):
        writer.data_alignment = alignment
    for key, value in metadata.items():
        _add_metadata(writer, key, value)
    for name, shape in shapes.items():
        kind = _type_of(shape, name, types)
        nbytes = _nbytes(shape, kind)
        writer.add_tensor_info(name, shape, np.dtype(np.float32), nbytes, _ggml(kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    return writer


def _nbytes(shape: tuple[int, ...], kind: TensorType) -> int:
    return int(np.prod(shape)) // kind.block_size * kind.block_bytes


def random_tensor(
    shape: tuple[int, ...], kind: TensorType, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Bytes of a Gaussian matrix of about unit gain, or of a norm's weights."""
    if len(shape) == 1:
        return rng.normal(1, 0.05, shape).astype(np.float32).view(np.uint8)
    rows, columns = shape
    pool = rng.standard_normal((min(rows, _POOL_ROWS), columns), np.float32) / np.sqrt(columns)
    data = quantize(pool, kind)
    if rows > _POOL_ROWS:
        data = data[rng.integers(0, _POOL_ROWS, rows)]
    return data


def quantize(weights: npt.NDArray[np.floating], kind: TensorType) -> npt.NDArray[np.uint8]:
    """llama.cpp's own quantization, as bytes [rows, row bytes]."""
    stored = libgguf.quantize_rows(weights.astype(np.float32), int(kind))
    return np.ascontiguousarray(stored).view(np.uint8)


def sentencepiece_tokenizer(size: int = 32000) -> dict[str, MetadataItem]:
    """A plausible Llama tokenizer of made-up pieces, each joined from two others."""
    special = ["<unk>", "<s>", "</s>"]
    in_bytes = [f"<0x{value:02X}>" for value in range(256)]
    letters = [chr(code) for code in range(33, 127)]
    syllables = [a + b for a, b in product("bcdfghjklmnprstvwz", "aeiou")]
    words = (start + a + b for a, b in product(syllables, repeat=2) for start in ("▁", ""))
    normal = list(dict.fromkeys(["▁", *letters, *syllables, *("▁" + s for s in syllables)]))
    pieces = [*special, *in_bytes, *normal, *words][:size]
    if len(pieces) < size:
        longer = ("".join(parts) for parts in product(syllables, repeat=3))
        pieces += [piece for piece, _ in zip(longer, range(size - len(pieces)), strict=False)]
    kinds = [2, 3, 3, *[6] * 256]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": [-float(max(0, i - 258)) for i in range(size)],
        "tokenizer.ggml.token_type": (kinds + [1] * size)[:size],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
    }


def _model_metadata(config: LlamaShape) -> dict[str, MetadataItem]:
    return {
        "general.name": "random weights",
        "llama.block_count": config.layers,
        "llama.context_length": config.context,
        "llama.embedding_length": config.width,
        "llama.feed_forward_length": config.ffn,
        "llama.attention.head_count": config.heads,
        "llama.attention.head_count_kv": config.kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": config.rope_base,
        "llama.vocab_size": config.vocab,
    }


def _tensor_shapes(config: LlamaShape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes (rows first) in the order llama.cpp's converter writes."""
    width, kv_width = config.width, config.kv_heads * config.head_dim
    if not config.tied:
        yield "output.weight", (config.vocab, width)
    yield "token_embd.weight", (config.vocab, width)
    if config.rope_freqs:
        yield "rope_freqs.weight", (config.head_dim // 2,)
    for layer in range(config.layers):
        prefix = f"blk.{layer}."
        yield prefix + "attn_norm.weight", (width,)
        yield prefix + "ffn_down.weight", (width, config.ffn)
        yield prefix + "ffn_gate.weight", (config.ffn, width)
        yield prefix + "ffn_up.weight", (config.ffn, width)
        yield prefix + "ffn_norm.weight", (width,)
        yield prefix + "attn_k.weight", (kv_width, width)
        yield prefix + "attn_output.weight", (width, width)
        yield prefix + "attn_q.weight", (width, width)
        yield prefix + "attn_v.weight", (kv_width, width)
    yield "output_norm.weight", (width,)


def _type_of(shape: tuple[int, ...], name: str, types: TypeChoice) -> TensorType:
    return TensorType.F32 if len(shape) == 1 else types(name)


def _ggml(kind: TensorType) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType(int(kind))


def _add_metadata(writer: gguf.GGUFWriter, key: str, value: MetadataItem) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)
