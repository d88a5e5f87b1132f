"""Which tensors a network's file holds, and their shapes, as its configuration gives them.

Works on the header's entries alone: knows no bytes and allocates nothing,
so that a file that contradicts itself is refused before anything of it is used.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod

from models.errors import GGUFError
from models.gguf.file import GGUFFile
from models.gguf.header import TensorInfo
from models.network.config import NetworkConfig
from models.network.switches import NormOf

_LAYER = re.compile(r"blk\.(\d+)\.")
# Of a network for pictures beside that for text, in files of Ollama's.
_PICTURES = ("v.", "mm.")


@dataclass(frozen=True, kw_only=True)
class _Expected:
    """One tensor that the network takes. tokens: its rows stand for tokens, one each."""

    name: str
    shape: tuple[int, ...]
    optional: bool = False
    tokens: bool = False


def check_tensors(
    tensors: Mapping[str, TensorInfo], config: NetworkConfig, *, tokens: int
) -> dict[str, TensorInfo]:
    """The entries to read, by name, after every count was held against every other.

    tokens: size of the vocabulary. Rows beyond it, with which some vocabularies are
    padded, stand for no token: they are left out of the entries, so that no such id
    can be drawn. Leading axes of 1 are dropped, and what sees pictures is left out.
    Matrices that the file has fused, and their biases, become entries of their parts.
    Raises GGUFError for a tensor that is missing, of another shape, quantized where
    it must not be, or not part of the network.
    """
    left = _unfused(tensors, config)
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


def tensors_to_read(file: GGUFFile, config: NetworkConfig) -> dict[str, TensorInfo]:
    """As `check_tensors`, for as many tokens as the file's tokenizer has."""
    tokens = len(file.metadata.get_strings("tokenizer.ggml.tokens"))
    return check_tensors(file.tensors, config, tokens=tokens)


def notes_on(tensors: Mapping[str, TensorInfo]) -> tuple[str, ...]:
    """A sentence where tensors are left out."""
    count = sum(name.startswith(_PICTURES) for name in tensors)
    return (f"{count} tensors that see pictures are left out: text only",) * bool(count)


def told_by_tensors(tensors: Mapping[str, TensorInfo]) -> tuple[str, ...]:
    """In words, what a file's tensors alone tell of its network."""
    biased = dict.fromkeys(
        name.split(".")[2] for name in tensors if _LAYER.match(name) and name.endswith(".bias")
    )
    words = {
        f"biases of {', '.join(biased)}": bool(biased),
        "fused attn_qkv": "blk.0.attn_qkv.weight" in tensors,
        "frequency factors of rope": "rope_freqs.weight" in tensors,
        "frequency factors of rope for short and long windows": (
            "rope_factors_long.weight" in tensors
        ),
        "output tied to the embeddings": "output.weight" not in tensors,
    }
    return tuple(word for word, said in words.items() if said)


def _network(config: NetworkConfig, tokens: int) -> Iterator[_Expected]:
    """Every tensor; lazily, because the number of layers is the file's word."""
    hidden, query = config.hidden, config.heads * config.head_dim
    held = config.kv_heads * config.head_dim
    yield _Expected(name="token_embd.weight", shape=(tokens, hidden), tokens=True)
    yield _Expected(name="output_norm.weight", shape=(hidden,))
    yield _Expected(name="output.weight", shape=(tokens, hidden), optional=True, tokens=True)
    if config.switches.logit_divisor == 1:
        yield _Expected(name="output.bias", shape=(tokens,), optional=True)
    if config.frequency_factors:
        for name in ("rope_freqs", "rope_factors_long", "rope_factors_short"):
            pairs = (config.rope_dims // 2,)
            yield _Expected(name=f"{name}.weight", shape=pairs, optional=True)
    matrices = {
        "attn_q": (query, hidden),
        "attn_k": (held, hidden),
        "attn_v": (held, hidden),
        "attn_output": (hidden, query),
        "ffn_gate": (config.ffn, hidden),
        "ffn_up": (config.ffn, hidden),
        "ffn_down": (hidden, config.ffn),
    }
    norms = _norms(config)
    for layer in range(config.layers):
        for name, size in norms.items():
            yield _Expected(name=f"blk.{layer}.{name}.weight", shape=(size,))
        for name, shape in matrices.items():
            yield _Expected(name=f"blk.{layer}.{name}.weight", shape=shape)
            yield _Expected(name=f"blk.{layer}.{name}.bias", shape=shape[:1], optional=True)


def _norms(config: NetworkConfig) -> dict[str, int]:
    """Sizes of a layer's norms."""
    switches, hidden, names = config.switches, config.hidden, list[str]()
    if switches.pre_norms:
        names += ["attn_norm", "ffn_norm"]
    if switches.post_norms:
        names += ["post_attention_norm", "post_ffw_norm"]
    sizes = dict.fromkeys(names, hidden)
    if switches.query_key_norm:
        heads = switches.query_key_norm is NormOf.ROW
        sizes["attn_q_norm"] = config.head_dim * (config.heads if heads else 1)
        sizes["attn_k_norm"] = config.head_dim * (config.kv_heads if heads else 1)
    return sizes


def _unfused(tensors: Mapping[str, TensorInfo], config: NetworkConfig) -> dict[str, TensorInfo]:
    """The entries of a file, with the parts of fused tensors in their place."""
    query, held = config.heads * config.head_dim, config.kv_heads * config.head_dim
    parts = {"attn_qkv": {"attn_q": query, "attn_k": held, "attn_v": held}}
    if config.switches.fused:
        parts["ffn_up"] = {"ffn_gate": config.ffn, "ffn_up": config.ffn}
    found = dict[str, TensorInfo]()
    for name, info in tensors.items():
        if name.startswith(_PICTURES):
            continue
        layer, _, rest = name.removeprefix("blk.").partition(".")
        stem, _, kind = rest.partition(".")
        if name.startswith("blk.") and stem in parts and kind in ("weight", "bias"):
            entries = _parted(info, f"blk.{layer}.{{}}.{kind}", parts[stem])
        else:
            entries = {name: info}
        if twice := sorted(entries.keys() & found.keys()):
            raise GGUFError(f"tensor {twice[0]!r} is there by itself and in a fused one")
        found |= entries
    return found


def _parted(info: TensorInfo, name: str, rows: Mapping[str, int]) -> dict[str, TensorInfo]:
    """A tensor's rows as tensors of their own, one after the other."""
    if info.shape[0] != sum(rows.values()):
        raise GGUFError(
            f"tensor {info.name!r} has shape {list(info.shape)}, expected "
            f"{sum(rows.values())} rows: of {', '.join(rows)}"
        )
    found, start = dict[str, TensorInfo](), 0
    for part, count in rows.items():
        whole = name.format(part)
        found[whole] = replace(info.leading(range(start, start + count)), name=whole)
        start += count
    return found


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


def _left_over(names: list[str], config: NetworkConfig) -> GGUFError:
    beyond = [name for name in names if (at := _LAYER.match(name)) and int(at[1]) >= config.layers]
    if beyond:
        return GGUFError(
            f"tensor {beyond[0]!r} belongs to none of the {config.layers} layers "
            f"that {config.architecture}.block_count gives"
        )
    return GGUFError(
        f"{len(names)} tensors are not part of a plain {config.architecture} network "
        f"(first: {names[0]!r}); mixtures of experts and other variants are not supported"
    )
