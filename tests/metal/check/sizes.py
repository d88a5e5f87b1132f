"""How much the check does; tests do the same with less."""

from dataclasses import dataclass, field

from models.gguf.tensor_types import TensorType
from tests.metal.check.timing import Timer


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Of one layer's attention."""

    name: str
    kv_heads: int
    group: int
    dim: int


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """Of a network, with no fewer rows than columns."""

    name: str
    rows: int
    columns: int


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """shapes, tokens: of attention. new, threadgroups: each varied by itself; other numbers of
    threadgroups than the decoder's own.

    matrices, types, tokens_of_products: of products, every combination.
    kernel_tokens: of launches by themselves. copied: bytes.
    depths: tokens held before the model generates. window: of one more cache, which lets go of
    what is older. generated: tokens a measurement; as many as a block, one is encoded then.
    model: by name, or a path.
    """

    shapes: tuple[Shape, ...] = (
        Shape(name="TinyLlama", kv_heads=4, group=8, dim=64),
        Shape(name="Llama-2-7B", kv_heads=32, group=1, dim=128),
    )
    matrices: tuple[Matrix, ...] = (
        Matrix(name="TinyLlama, gate and up", rows=11264, columns=2048),
        Matrix(name="Llama-2-7B, gate and up", rows=22016, columns=4096),
    )
    types: tuple[TensorType, ...] = (TensorType.Q4_K, TensorType.Q6_K, TensorType.Q8_0)
    tokens_of_products: tuple[int, ...] = (1, 8, 32, 512)
    tokens: tuple[int, ...] = (4096, 16384, 32768)
    kernel_tokens: tuple[int, ...] = (4096, 32768)
    new: tuple[int, ...] = (2, 4, 8)
    threadgroups: tuple[int, ...] = (64, 128, 256, 512, 1024)
    copied: int = 256 * 2**20
    depths: tuple[int, ...] = (0, 2048, 8192, 32768)
    window: int = 2048
    generated: int = 64
    model: str = "smollm2"
    timer: Timer = field(default_factory=Timer)
