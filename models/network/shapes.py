"""Which tensors a Llama file holds, and their shapes, as its configuration gives them.

Works on the header's entries alone: knows no bytes, repacks and allocates nothing,
so that a file that contradicts itself is refused before anything of it is used.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod

from models.errors import GGUFError
from models.gguf.header import TensorInfo
from models.network.config import LlamaConfig

_LAYER = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class _Expected:
    """One tensor that the network takes. tokens: its rows stand for tokens, one each."""

    name: str
    shape: tuple[int, ...]
    optional: bool = False
    tokens: bool = False


def check_tensors(
    tensors: Mapping[str, TensorInfo], config: LlamaConfig, *, tokens: int
) -> dict[str, TensorInfo]:
    """The entries to read, by name, after every count was held against every other.

    tokens: size of the vocabulary. Rows beyond it, with which some vocabularies are
    padded, stand for no token: they are left out of the entries, so that no such id
    can be drawn. Leading axes of 1 are dropped.
    Raises GGUFError for a tensor that is missing, of another shape, quantized where
    it must not be, or not part of the network.
    """
    left = dict(tensors)
    checked: dict[str, TensorInfo] = {}
    for expected in _network(config, tokens):
        found = left.pop(expected.name, None)
        if found is not None:
            checked[expected.name] = _fitted(found, expected)
        elif not expected.optional:
            raise GGUFError(
                f"tensor {expected.name!r} is missing, expected shape {list(expected.shape)}"
            )
    if left:
        raise _left_over(sorted(left), config)
    _check_tables(tensors)
    return checked


def _network(config: LlamaConfig, tokens: int) -> Iterator[_Expected]:
    """Every tensor; lazily, because the number of layers is the file's word."""
    hidden, query = config.hidden, config.heads * config.head_dim
    held = config.kv_heads * config.head_dim
    yield _Expected(name="token_embd.weight", shape=(tokens, hidden), tokens=True)
    yield _Expected(name="output_norm.weight", shape=(hidden,))
    yield _Expected(name="output.weight", shape=(tokens, hidden), optional=True, tokens=True)
    yield _Expected(name="output.bias", shape=(tokens,), optional=True)
    yield _Expected(name="rope_freqs.weight", shape=(config.rope_dims // 2,), optional=True)
    matrices = {
        "attn_q": (query, hidden),
        "attn_k": (held, hidden),
        "attn_v": (held, hidden),
        "attn_output": (hidden, query),
        "ffn_gate": (config.ffn, hidden),
        "ffn_up": (config.ffn, hidden),
        "ffn_down": (hidden, config.ffn),
    }
    for layer in range(config.layers):
        for norm in ("attn_norm", "ffn_norm"):
            yield _Expected(name=f"blk.{layer}.{norm}.weight", shape=(hidden,))
        for name, shape in matrices.items():
            yield _Expected(name=f"blk.{layer}.{name}.weight", shape=shape)
            yield _Expected(name=f"blk.{layer}.{name}.bias", shape=shape[:1], optional=True)


def _fitted(found: TensorInfo, expected: _Expected) -> TensorInfo:
    """The entry in the expected shape, its rows beyond the vocabulary left out."""
    wanted, shape = expected.shape, found.shape
    while len(shape) > len(wanted) and shape[0] == 1:
        shape = shape[1:]
    if expected.tokens and shape[1:] == wanted[1:]:
        if shape[0] < wanted[0]:
            raise GGUFError(
                f"tensor {found.name!r} has {shape[0]} rows, expected one for each of the "
                f"{wanted[0]} tokens; its tokenizer is another model's, or the file is damaged"
            )
        shape = wanted
    if shape != wanted:
        raise GGUFError(
            f"tensor {found.name!r} has shape {list(found.shape)}, expected {list(wanted)}"
        )
    if len(wanted) == 1 and found.type.block_size > 1:
        raise GGUFError(f"tensor {found.name!r} is {found.type.name}, expected F32, F16 or BF16")
    return replace(found, shape=shape, nbytes=found.nbytes // found.rows * prod(shape[:-1]))


def _check_tables(tensors: Mapping[str, TensorInfo]) -> None:
    """A padded vocabulary is padded alike on both sides of the network."""
    embedding, output = tensors["token_embd.weight"], tensors.get("output.weight")
    if output is not None and output.rows != embedding.rows:
        raise GGUFError(
            f"tensor 'output.weight' has {output.rows} rows and 'token_embd.weight' "
            f"{embedding.rows}, expected as many"
        )


def _left_over(names: list[str], config: LlamaConfig) -> GGUFError:
    beyond = [name for name in names if (at := _LAYER.match(name)) and int(at[1]) >= config.layers]
    if beyond:
        return GGUFError(
            f"tensor {beyond[0]!r} belongs to none of the {config.layers} layers "
            "that llama.block_count gives"
        )
    return GGUFError(
        f"{len(names)} tensors are not part of a plain Llama network "
        f"(first: {names[0]!r}); mixtures of experts and other variants are not supported"
    )
