"""The sizes that a call's queries and tiers share, and how the work is cut to a GPU."""

from dataclasses import dataclass

from kvcache.errors import CacheError

RUN = 8  # channels that a lane handles together
TILE = 32  # tokens that a simdgroup takes at a time, one per lane
_LARGEST_DIM = 256  # so that the runs of a token fit a simdgroup
_ROWS = 8  # query rows that share one read of a token: more would not fit in registers
# Rows of all spans' partial results of one KV head. Written and read they are 118 KB at D = 64, 10%
# of 16k tokens in the default codecs.
_PARTIAL_ROWS = 224
_LEAST_UNITS = 4  # of a span, tiles or blocks: fewer are not worth a partial result
_LEAST_PARTIALS = 4  # so that their stats, two numbers each, are in device memory too
_SHARED_BYTES = 8 * 1024  # of folded queries and weights, for several threadgroups at a time


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
    def of(cls, queries: tuple[int, ...], kv_heads: int) -> "CallShape":
        """From queries' shape [B, Hq, L, D]."""
        batch, heads, new, dim = queries
        return cls(batch=batch, kv_heads=kv_heads, group=heads // kv_heads, new=new, dim=dim)

    @property
    def heads(self) -> int:
        """KV heads of all batch rows."""
        return self.batch * self.kv_heads

    @property
    def rows(self) -> int:
        """Query rows that meet one KV head."""
        return self.group * self.new

    @property
    def row_tiles(self) -> int:
        """Parts of the rows, each of which reads the tokens once."""
        return ceil_div(self.rows, _ROWS)

    @property
    def tile_rows(self) -> int:
        """Rows of a part."""
        return ceil_div(self.rows, self.row_tiles)

    @property
    def simdgroups(self) -> int:
        """Of a threadgroup: four, or two where their threadgroup memory would be too much."""
        bytes_each = 4 * self.tile_rows * (self.dim + TILE)
        return 4 if 4 * bytes_each <= _SHARED_BYTES else 2

    def spans(self, units: int, threadgroups: int) -> int:
        """How many ways to split units of work, one at a time to a simdgroup.

        threadgroups: how many keep the GPU busy; more only add to what is merged.
        """
        wanted = threadgroups // (self.heads * self.row_tiles)
        worth = ceil_div(units, max(self.simdgroups, _LEAST_UNITS))
        most = min(wanted, _PARTIAL_ROWS // self.rows, worth)
        least = ceil_div(_LEAST_PARTIALS, self.heads * self.rows)
        return max(least, most)


def check_dim(dim: int) -> None:
    """Raises CacheError for a head dimension that no kernel takes."""
    if dim % RUN or dim > _LARGEST_DIM:
        raise CacheError(
            f"got head dimension {dim}, but the GPU kernels take multiples of {RUN} up to "
            f"{_LARGEST_DIM}; use --backend reference"
        )


def ceil_div(count: int, size: int) -> int:
    """count / size, rounded up."""
    return -(-count // size)
