"""The sizes that a call's queries and tiers share, and how the work is cut to a GPU."""

from dataclasses import dataclass
from functools import cached_property, lru_cache

from kvcache.errors import CacheError

RUN = 8  # channels that a lane handles together
TILE = 32  # tokens that a simdgroup takes at a time, one per lane
_LARGEST_DIM = 256  # so that the runs of a token fit a simdgroup
# Rows of all spans' partial results of one KV head. Written and read they are 118 KB at D = 64, 10%
# of 16k tokens in the default codecs.
_PARTIAL_ROWS = 224
_LEAST_UNITS = 4  # of a span, tiles or blocks: fewer are not worth a partial result
_LEAST_PARTIALS = 4  # so that their stats, two numbers each, are in device memory too
_ROWS = 8  # query rows of a simdgroup: more would not fit in the 128 registers of a thread
_ROWS_OF_LARGEST = 4  # where a lane has eight channels of each
_PART_ROWS = 16  # that read the tokens once
_SIMDGROUPS = 4  # of a threadgroup; half as many where teams' tokens would take too much memory
_WIDE_DIM = 64  # with more channels they do
# Up to which the lanes of a simdgroup have four channels each, or fewer lanes. With more, one
# simdgroup's tokens and rows fill a threadgroup's memory.
WIDEST_DIM = 128


@dataclass(frozen=True, kw_only=True)
class CallShape:
    """B, Hkv, G, L and D. Raises CacheError for a D that the kernels do not take."""

    batch: int
    kv_heads: int
    group: int
    new: int
    dim: int

    def __post_init__(self) -> None:
        check_dim(self.dim)

    @classmethod
    @lru_cache(maxsize=64)
    def of(cls, queries: tuple[int, ...], kv_heads: int) -> "CallShape":
        """From queries' shape [B, Hq, L, D]; the same for all layers and tokens."""
        batch, heads, new, dim = queries
        return cls(batch=batch, kv_heads=kv_heads, group=heads // kv_heads, new=new, dim=dim)

    @property
    def heads(self) -> int:
        """KV heads of all batch rows."""
        return self.batch * self.kv_heads

    @cached_property
    def rows(self) -> int:
        """Query rows that meet one KV head."""
        return self.group * self.new

    @cached_property
    def row_parts(self) -> int:
        """Parts of the rows, each of which reads the tokens once."""
        most = _PART_ROWS if self.dim <= WIDEST_DIM else _ROWS_OF_LARGEST
        return ceil_div(self.rows, most)

    @cached_property
    def _part_rows(self) -> int:
        """Rows of a part, of several new tokens rounded up to a power of two.

        So few kernels serve every number of new tokens, and none is compiled in an answer.
        """
        rows = ceil_div(self.rows, self.row_parts)
        return rows if self.new == 1 else 1 << (rows - 1).bit_length()

    @cached_property
    def team(self) -> int:
        """Simdgroups that share the tokens they read; each has rows of its own."""
        return ceil_div(self._part_rows, _ROWS)

    @cached_property
    def tile_rows(self) -> int:
        """Rows of a simdgroup, a constant of kernels."""
        return ceil_div(self._part_rows, self.team)

    @cached_property
    def teams(self) -> int:
        """Of a threadgroup: each reads other tokens."""
        if self.dim > WIDEST_DIM:
            return 1
        return max(1, (_SIMDGROUPS if self.dim <= _WIDE_DIM else _SIMDGROUPS // 2) // self.team)

    @property
    def simdgroups(self) -> int:
        """Of a threadgroup."""
        return self.team * self.teams

    def spans(self, units: int, threadgroups: int) -> int:
        """How many ways to split units of work, one at a time to a team.

        threadgroups: how many keep the GPU busy; more only add to what is merged.
        """
        wanted = threadgroups // (self.heads * self.row_parts)
        worth = ceil_div(units, max(self.teams, _LEAST_UNITS))
        most = min(wanted, _PARTIAL_ROWS // self.rows, worth)
        least = ceil_div(_LEAST_PARTIALS, self.heads * self.rows)
        return max(least, most)


def check_dim(dim: int) -> None:
    """Raises CacheError for a head dimension that no kernel takes."""
    if dim % RUN or dim > _LARGEST_DIM:
        raise CacheError(
            f"got head dimension {dim}, but the GPU kernels take multiples of {RUN} up to "
            f"{_LARGEST_DIM}; use `backend` reference"
        )


def ceil_div(count: int, size: int) -> int:
    """count / size, rounded up."""
    return -(-count // size)
