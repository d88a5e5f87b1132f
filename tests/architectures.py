"""What a GGUF file of each architecture holds, and such files with random weights.

The weights are whole numbers times a scale, as Q8_0 stores them, so that one network is
written unencoded (F32) or as Q8_0 without a difference. Their bits are PCG64's, not those
of numpy's distributions, which may change from release to release: every machine and
release makes the same files.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

import numpy as np
import numpy.typing as npt

from models.gguf.tensor_types import TensorType
from tests.gguf_factory import MetadataItem, TypeChoice, random_tensor, write_file

_BLOCK = 32
_LEVELS = 127
# Root mean square of a level, when all of them are as likely.
_LEVEL = float(np.sqrt(_LEVELS * (_LEVELS + 1) / 3))
# Products of unit rows, but for those whose errors must be seen: scores that single tokens
# out, what attention adds, and logits.
_GAINS = {"attn_q": 1.3, "attn_k": 1.3, "attn_output": 2.0, "output": 2.5}

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A network's dimensions and what else its file says.

    keys: metadata without the architecture's prefix. vectors: the tensors with rope's
    factors, which are not random, by name. biases: matrices of a layer that have one.
    gains: of the products, where they are not those of all.
    """

    architecture: str
    layers: int
    width: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int = 4096
    norm_eps: float = 1e-4
    tied: bool = False
    keys: Mapping[str, MetadataItem] = field(default_factory=dict)
    vectors: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    biases: tuple[str, ...] = ()
    gains: Mapping[str, float] = field(default_factory=dict)

    def metadata(self) -> dict[str, MetadataItem]:
        """All keys but the tokenizer's."""
        keys: dict[str, MetadataItem] = {
            "block_count": self.layers,
            "context_length": self.context,
            "embedding_length": self.width,
            "feed_forward_length": self.ffn,
            "attention.head_count": self.heads,
            "attention.head_count_kv": self.kv_heads,
            "attention.layer_norm_rms_epsilon": self.norm_eps,
            "rope.freq_base": 10000.0,
        }
        if self.head_dim != self.width // self.heads:
            keys |= {"attention.key_length": self.head_dim}
            keys |= {"attention.value_length": self.head_dim}
        keys |= self.keys
        prefixed = {f"{self.architecture}.{key}": value for key, value in keys.items()}
        return {"general.name": "random weights", **prefixed}

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes, rows first."""
        yield "token_embd.weight", (self.vocab, self.width)
        if not self.tied:
            yield "output.weight", (self.vocab, self.width)
        for name, values in self.vectors.items():
            yield name, (len(values),)
        for layer in range(self.layers):
            for name, shape in self._matrices().items():
                yield f"blk.{layer}.{name}.weight", shape
                if name in self.biases:
                    yield f"blk.{layer}.{name}.bias", shape[:1]
            for name, size in _norms(self).items():
                yield f"blk.{layer}.{name}.weight", (size,)
        yield "output_norm.weight", (self.width,)

    def _matrices(self) -> dict[str, tuple[int, int]]:
        query, held = self.heads * self.head_dim, self.kv_heads * self.head_dim
        if self.architecture == "phi3":
            of_width = {"attn_qkv": query + 2 * held, "ffn_up": 2 * self.ffn}
        else:
            of_width = {"attn_q": query, "attn_k": held, "attn_v": held}
            of_width |= {"ffn_gate": self.ffn, "ffn_up": self.ffn}
        shapes = {name: (rows, self.width) for name, rows in of_width.items()}
        return shapes | {"attn_output": (self.width, query), "ffn_down": (self.width, self.ffn)}


def _norms(shape: Shape) -> dict[str, int]:
    """Sizes of a layer's norms by name."""
    before = {"attn_norm": shape.width, "ffn_norm": shape.width}
    after = {"post_attention_norm": shape.width, "post_ffw_norm": shape.width}
    of_head = {"attn_q_norm": shape.head_dim, "attn_k_norm": shape.head_dim}
    match shape.architecture:
        case "qwen3":
            return before | of_head
        case "gemma3":
            return before | of_head | after
        case "olmo2":
            heads = {"attn_q_norm": shape.heads, "attn_k_norm": shape.kv_heads}
            return {name: count * shape.head_dim for name, count in heads.items()} | after
        case _:
            return before


@dataclass(frozen=True, kw_only=True)
class _Exact:
    """A matrix as Q8_0 has it: scales f16 [rows, blocks], levels int8 [rows, blocks, 32]."""

    scales: npt.NDArray[np.float16]
    levels: npt.NDArray[np.int8]

    def unencoded(self) -> Array:
        """float32 [rows, columns], of exactly these values."""
        values = self.scales.astype(np.float32)[..., None] * self.levels
        return values.reshape(len(values), -1)

    def blocks(self) -> npt.NDArray[np.uint8]:
        """Bytes [rows, row bytes]."""
        scales = self.scales[..., None].view(np.uint8)
        blocks = np.concatenate([scales, self.levels.view(np.uint8)], axis=-1)
        return blocks.reshape(len(blocks), -1)


def weights(shape: Shape, seed: int) -> dict[str, Array]:
    """All tensors by name, unencoded."""
    return {name: _unencoded(_tensor(shape, name, size, seed)) for name, size in shape.tensors()}


def fingerprint(shape: Shape, seed: int) -> str:
    """SHA-256 of all tensors' names and values."""
    digest = hashlib.sha256()
    for name, values in weights(shape, seed).items():
        digest.update(name.encode() + values.astype("<f4").tobytes())
    return digest.hexdigest()


def write_network(
    path: Path,
    shape: Shape,
    *,
    kind: TensorType,
    tokenizer_metadata: Mapping[str, MetadataItem],
    seed: int,
) -> None:
    """Write the file with all matrices as `kind`, which is F32 or Q8_0."""
    of_matrices = {TensorType.F32: _Exact.unencoded, TensorType.Q8_0: _Exact.blocks}[kind]
    write_file(
        path,
        architecture=shape.architecture,
        metadata={**shape.metadata(), **tokenizer_metadata},
        shapes=dict(shape.tensors()),
        types=lambda _name: kind,
        data=lambda name, size: _bytes(_tensor(shape, name, size, seed), of_matrices),
    )


def write_large(
    path: Path,
    shape: Shape,
    *,
    types: TypeChoice,
    tokenizer_metadata: Mapping[str, MetadataItem],
    seed: int,
) -> None:
    """Write a file of a real network's size, whose weights are not the same everywhere."""
    rng = np.random.default_rng(seed)

    def data(name: str, size: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        if name in shape.vectors:
            return np.array(shape.vectors[name], np.float32).view(np.uint8)
        return random_tensor(size, types(name), rng)

    write_file(
        path,
        architecture=shape.architecture,
        metadata={**shape.metadata(), **tokenizer_metadata},
        shapes=dict(shape.tensors()),
        types=types,
        data=data,
    )


def random_bits(count: int, *seed: int) -> npt.NDArray[np.uint64]:
    """uint64 [count]: as many outputs of PCG64."""
    return np.random.PCG64(np.random.SeedSequence(seed)).random_raw(count)


def gain(shape: Shape, name: str) -> float:
    """Of the product with a matrix, for rows of unit size; the middle of a norm's weights."""
    kind = name.split(".")[-2]
    return shape.gains.get(kind, _GAINS.get(kind, 1.0))


def vector(shape: Shape, name: str, size: tuple[int, ...], seed: int) -> Array:
    """A tensor [size]: rope's factors, a norm or a bias."""
    if name in shape.vectors:
        return np.array(shape.vectors[name], np.float32)
    bits = random_bits(int(np.prod(size)), seed, crc32(name.encode()))
    between = ((bits >> np.uint64(40)) / 2.0**23 - 1) / 2  # -0.5 to 0.5
    middle = 0.0 if name.endswith(".bias") else gain(shape, name)
    return (middle + between).astype(np.float32)


def _tensor(shape: Shape, name: str, size: tuple[int, ...], seed: int) -> Array | _Exact:
    if len(size) == 1:
        return vector(shape, name, size, seed)
    rows, columns = size
    bits = random_bits(rows * columns, seed, crc32(name.encode()))
    levels = (bits % np.uint64(2 * _LEVELS + 1)).astype(np.int64) - _LEVELS
    # Scales of half to one and a half times what gives the gain.
    factors = 0.5 + (bits[::_BLOCK] >> np.uint64(40)) / 2.0**24
    scales = factors * (gain(shape, name) / _LEVEL / np.sqrt(columns))
    blocks = columns // _BLOCK
    return _Exact(
        scales=scales.reshape(rows, blocks).astype(np.float16),
        levels=levels.reshape(rows, blocks, _BLOCK).astype(np.int8),
    )


def _unencoded(tensor: Array | _Exact) -> Array:
    return tensor.unencoded() if isinstance(tensor, _Exact) else tensor


def _bytes(
    tensor: Array | _Exact, of_matrices: Callable[[_Exact], npt.NDArray[np.generic]]
) -> npt.NDArray[np.uint8]:
    stored = of_matrices(tensor) if isinstance(tensor, _Exact) else tensor
    return stored.view(np.uint8)
