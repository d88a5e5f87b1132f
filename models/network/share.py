"""Which part of a network each of several ranks holds: heads, feed-forward rows, tokens.

Works on dimensions and the header's entries: knows no bytes and no way between ranks, so that
what cannot be shared is refused before a tensor is read, and `inspect` can tell it of any file.
As in Megatron (arXiv 1909.08053): attention by heads and the feed-forward part by its rows, so
that a layer adds up twice what its ranks have computed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Self

from kvcache import EmberError
from models.gguf.header import TensorInfo
from models.network.config import NetworkConfig
from models.network.switches import NormOf


class Split(Enum):
    """How ranks share a tensor."""

    WHOLE = "each has all of it"
    HEADS = "rows of its heads"
    FFN = "rows of its part of feed-forward"
    HEAD_COLUMNS = "columns of its heads"
    FFN_COLUMNS = "columns of its part of feed-forward"
    TOKENS = "rows of its tokens"


_OF_WEIGHTS = {
    "token_embd": Split.TOKENS,
    "output": Split.TOKENS,
    "attn_q": Split.HEADS,
    "attn_k": Split.HEADS,
    "attn_v": Split.HEADS,
    "attn_output": Split.HEAD_COLUMNS,
    "ffn_gate": Split.FFN,
    "ffn_up": Split.FFN,
    "ffn_down": Split.FFN_COLUMNS,
}
_BY_COLUMNS = (Split.HEAD_COLUMNS, Split.FFN_COLUMNS)
_OF_ROWS = ("attn_q_norm", "attn_k_norm")  # of all heads, where the network norms them together


class UnevenError(EmberError):
    """So many ranks cannot share a network."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """What rank `rank` of `size` holds of a network of dimensions `whole`.

    tokens: of its vocabulary. ffn_block: weights of feed-forward that stay together, because its
    matrices lie in blocks.
    """

    whole: NetworkConfig
    rank: int
    size: int
    tokens: int
    ffn_block: int

    @classmethod
    def of(
        cls, whole: NetworkConfig, entries: Mapping[str, TensorInfo], *, rank: int, size: int
    ) -> Self:
        """Raises UnevenError, with the numbers of ranks that would do, where it cannot be."""
        if size not in (possible := sizes(whole, entries)):
            *others, most = possible
            would = f"{most} ranks, or {' or '.join(map(str, others))}" if others else "1 rank"
            raise UnevenError(
                f"{size} ranks cannot share this model ({whole.heads} heads over "
                f"{whole.kv_heads} KV heads, {whole.ffn} rows of feed-forward): give it {would}"
            )
        return cls(
            whole=whole,
            rank=rank,
            size=size,
            tokens=entries["token_embd.weight"].rows,
            ffn_block=_block(entries, "ffn_down", whole.layers),
        )

    @property
    def config(self) -> NetworkConfig:
        """The dimensions of the rank's own network; the width is everybody's."""
        return replace(
            self.whole,
            heads=self.whole.heads // self.size,
            kv_heads=self.whole.kv_heads // self.size,
            ffn=len(self._ffn),
        )

    def entries(self, whole: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
        """What the rank reads of each tensor."""
        return {name: self._part(info) for name, info in whole.items()}

    def split(self, name: str) -> Split:
        """How the ranks share a tensor, by its name in the file."""
        stem, _, kind = name.removeprefix("blk.").rpartition(".")
        stem = stem.rpartition(".")[2]
        if stem in _OF_ROWS and self.whole.switches.query_key_norm is NormOf.ROW:
            return Split.HEADS
        split = _OF_WEIGHTS.get(stem, Split.WHOLE)
        return Split.WHOLE if kind == "bias" and split in _BY_COLUMNS else split

    @property
    def own_tokens(self) -> range:
        """The rank's part of the vocabulary; ranks' differ by one token at most."""
        return self._of(self.tokens)

    def _part(self, info: TensorInfo) -> TensorInfo:
        match self.split(info.name):
            case Split.WHOLE:
                return info
            case Split.HEADS:
                return info.leading(self._of(info.shape[0]))
            case Split.HEAD_COLUMNS:
                return info.columns(self._of(info.shape[1]))
            case Split.FFN:
                return info.leading(self._ffn)
            case Split.FFN_COLUMNS:
                return info.columns(self._ffn)
            case Split.TOKENS:
                return info.leading(self.own_tokens)

    @property
    def _ffn(self) -> range:
        """Whole blocks; where the ranks do not divide them, some have one more."""
        blocks = self._of(self.whole.ffn // self.ffn_block)
        return range(blocks.start * self.ffn_block, blocks.stop * self.ffn_block)

    def _of(self, count: int) -> range:
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)


def sizes(config: NetworkConfig, entries: Mapping[str, TensorInfo]) -> list[int]:
    """How many ranks can share a network: KV heads divide, and blocks stay whole."""
    heads = _block(entries, "attn_output", config.layers)
    blocks = config.ffn // _block(entries, "ffn_down", config.layers)
    return [
        size
        for size in range(1, config.kv_heads + 1)
        if size == 1
        or (
            config.kv_heads % size == 0
            and config.heads // size * config.head_dim % heads == 0
            and size <= blocks
        )
    ]


def _block(entries: Mapping[str, TensorInfo], stem: str, layers: int) -> int:
    """Weights of a row that stay together in all layers; block sizes are multiples of another."""
    return max(entries[f"blk.{layer}.{stem}.weight"].type.block_size for layer in range(layers))
