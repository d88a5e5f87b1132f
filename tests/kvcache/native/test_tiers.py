"""Attention over tiers against its definition in float64 over the decoded blocks."""

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest

from kvcache import CacheError
from kvcache.codecs import NAMES, codec
from kvcache.codecs.base import Encoded
from kvcache.native.codec import CpuCodec, Role
from kvcache.native.library import Library
from kvcache.native.structs import Array, Bytes, Floats
from tests.kvcache.native.native_tiers import ColdBlocks, UnencodedPiece, attend_tiers

TAKEN = tuple(name for name in NAMES if not name.endswith("p"))
Double = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
SCALE = 0.13
TOLERANCE = 3e-4  # a query of 15 bits against wide score spreads


@dataclass(frozen=True, kw_only=True)
class Case:
    """Sizes of one call."""

    batch: int = 1
    heads: int = 3
    groups: int = 3
    queries: int = 1
    dim: int = 64
    tokens: int = 64  # M
    blocks: int = 5
    sinks: int = 4
    hot: tuple[int, int] = (37, 70)  # the ring's two pieces
    spread: float = 1.0


class Tiers:
    """Random tokens in their tiers, and what the kernels should make of them."""

    def __init__(self, case: Case, kernels: Library, keys: str, values: str) -> None:
        self.case, self.kernels = case, kernels
        self.rng = np.random.default_rng(case.dim + case.queries)
        heads = case.heads * case.groups
        shape = case.batch, heads, case.queries, case.dim
        self.q, self.q_sink = self.rng.normal(size=(2, *shape)).astype(np.float32) * case.spread
        self.known: list[tuple[Double, Double]] = []  # keys and values, in order
        self.pieces = [self._piece(case.sinks, np.float16, pinned=True)]
        self.cold: ColdBlocks | None = self._cold(keys, values) if case.blocks else None
        self.pieces += [self._piece(count, np.float16) for count in case.hot]
        self.pieces.append(self._piece(case.queries, np.float32))
        self.position = self._count() - case.queries

    def _count(self) -> int:
        return sum(k.shape[2] for k, _ in self.known)

    def _tokens(self, count: int) -> Floats:
        case = self.case
        shape = case.batch, case.heads, count, case.dim
        x = self.rng.normal(size=shape) * case.spread
        x[..., 3] *= 4
        return (x + self.rng.normal(size=(1, case.heads, 1, case.dim))).astype(np.float32)

    def _piece(self, count: int, kind: type, *, pinned: bool = False) -> UnencodedPiece:
        """Views into something larger."""
        position, views = self._count(), []
        for _ in range(2):
            x: Array = self._tokens(count + 7).astype(kind)
            views.append(x[:, :, 3 : 3 + count])
        keys, values = views
        self.known.append((keys.astype(np.float64), values.astype(np.float64)))
        return UnencodedPiece(
            keys=keys, values=values, count=count, position=position, pinned=pinned
        )

    def _cold(self, keys: str, values: str) -> ColdBlocks:
        """Blocks in two segments, in an order of their own."""
        case, position = self.case, self._count()
        coders, segments, known = [], [], []
        first = (case.blocks + 1) // 2
        slots = [(0, i) for i in range(first)] + [(1, i) for i in range(case.blocks - first)]
        order = np.array(slots[::-1], np.int64)
        for name, role in ((keys, Role.KEYS), (values, Role.VALUES)):
            coder = CpuCodec.of(
                codec(name, seed=11),
                tokens=case.tokens,
                heads=case.heads,
                dim=case.dim,
                role=role,
                kernels=self.kernels,
            )
            assert coder is not None
            records = np.empty((case.blocks, case.batch, case.heads, coder.record_bytes), np.uint8)
            coder.encode(self._tokens(case.blocks * case.tokens), records)
            coders.append(coder)
            known.append(_decoded(coder, records))
            backwards = records[::-1]
            segments.append([np.ascontiguousarray(backwards[:first]), backwards[first:].copy()])
        self.known.append((known[0], known[1]))
        return ColdBlocks(
            key_codec=coders[0],
            value_codec=coders[1],
            segments=list(zip(*segments, strict=True)),
            order=order,
            position=position,
        )

    def run(self, lowest: Integers) -> Floats:
        return attend_tiers(
            self.q,
            self.q_sink,
            self.pieces,
            self.cold,
            lowest=lowest,
            position=self.position,
            scale=SCALE,
            kernels=self.kernels,
        )

    def expected(self, lowest: Integers) -> Double:
        case = self.case
        keys, values = (np.concatenate(x, axis=2) for x in zip(*self.known, strict=True))
        at = np.arange(self._count())
        out = np.zeros(self.q.shape)
        for row, head, query in np.ndindex(self.q.shape[:3]):
            k, v = keys[row, head // case.groups], values[row, head // case.groups]
            low = lowest[query] if lowest.ndim == 1 else lowest[row, query]
            seen = (at < case.sinks) | ((at >= low) & (at <= self.position + query))
            scores = k @ self.q[row, head, query].astype(np.float64)
            scores[: case.sinks] = k[: case.sinks] @ self.q_sink[row, head, query]
            scores = np.where(seen, scores * SCALE, -np.inf)
            weights = np.exp(scores - scores.max())
            out[row, head, query] = weights / weights.sum() @ v
        return out


def _decoded(coder: CpuCodec, records: Bytes) -> Double:
    """Tokens [B, Hkv, N * M, D] of records, by MLX."""
    blocks = coder.codec.decode(Encoded(parts=coder.to_parts(records), dim=coder.dim))
    joined = np.asarray(blocks).transpose(1, 2, 0, 3, 4)
    return joined.reshape(*joined.shape[:2], -1, coder.dim).astype(np.float64)


def _assert_close(got: Floats, want: Double) -> None:
    assert np.abs(got - want).max() < TOLERANCE * np.abs(want).max()


def _lowest(tiers: Tiers, *, hidden: int) -> Integers:
    """Each query's first visible token, `hidden` past the sinks for the first query."""
    first = tiers.case.sinks + hidden
    return np.arange(first, first + tiers.case.queries, dtype=np.int64)


CASES = {
    "decode": Case(),
    "two-rows": Case(batch=2, heads=1, groups=4, queries=2, dim=128, tokens=32, blocks=7),
    "odd": Case(heads=2, groups=5, queries=7, dim=80, tokens=96, blocks=3),
    "prefill": Case(batch=2, heads=2, groups=3, queries=40, dim=96, tokens=128, blocks=2),
    "many-groups": Case(heads=1, groups=8, tokens=16, blocks=9, dim=64),
    "no-cold": Case(groups=1, queries=5, blocks=0, dim=16),
    "sharp": Case(spread=2.0, groups=7, queries=3),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("pair", [("hkivi5", "turbo4u"), ("kivi4", "kvarn6")])
def test_matches_its_definition(kernels: Library, case: Case, pair: tuple[str, str]) -> None:
    tiers = Tiers(case, kernels, *pair)
    for hidden in (0, 1, 21, 65):
        lowest = _lowest(tiers, hidden=hidden)
        _assert_close(tiers.run(lowest), tiers.expected(lowest))


@pytest.mark.parametrize("queries", [1, 3, 11])
@pytest.mark.parametrize("name", TAKEN)
def test_every_codec_in_both_roles(kernels: Library, name: str, queries: int) -> None:
    case = Case(queries=queries, dim=128, heads=2, groups=3, tokens=32, blocks=3)
    for pair in ((name, "q8"), ("hkivi5", name)):
        tiers = Tiers(case, kernels, *pair)
        lowest = _lowest(tiers, hidden=5)
        _assert_close(tiers.run(lowest), tiers.expected(lowest))


def test_rows_of_a_batch_have_windows_of_their_own(kernels: Library) -> None:
    tiers = Tiers(Case(batch=3, queries=2), kernels, "hkivi5", "turbo3u")
    lowest = np.array([[4, 4], [70, 71], [360, 361]], np.int64)
    _assert_close(tiers.run(lowest), tiers.expected(lowest))


def test_nothing_but_itself_and_the_sinks(kernels: Library) -> None:
    tiers = Tiers(Case(queries=9), kernels, "hkivi5", "turbo3u")
    lowest = tiers.position + np.arange(9)
    _assert_close(tiers.run(lowest), tiers.expected(lowest))


@pytest.mark.parametrize("factor", [0.0, 1e-6, 1e4])
@pytest.mark.parametrize("queries", [1, 12])
def test_extreme_queries(kernels: Library, factor: float, queries: int) -> None:
    tiers = Tiers(Case(queries=queries), kernels, "hkivi5", "turbo3u")
    tiers.q[...] *= factor
    tiers.q_sink[...] *= factor
    lowest = _lowest(tiers, hidden=0)
    got = tiers.run(lowest)
    assert np.isfinite(got).all()
    if factor < 1:
        _assert_close(got, tiers.expected(lowest))


@pytest.mark.parametrize("queries", [1, 12])
def test_an_outlier_in_the_query(kernels: Library, queries: int) -> None:
    tiers = Tiers(Case(queries=queries), kernels, "kivi5", "turbo3u")
    tiers.q[..., 3] *= 50
    lowest = _lowest(tiers, hidden=0)
    _assert_close(tiers.run(lowest), tiers.expected(lowest))


def test_same_results_each_time(kernels: Library) -> None:
    tiers = Tiers(Case(queries=3, blocks=20), kernels, "hkivi5", "turbo3u")
    lowest = _lowest(tiers, hidden=9)
    first = tiers.run(lowest)
    for _ in range(5):
        np.testing.assert_array_equal(tiers.run(lowest), first)


def test_what_does_not_fit_is_refused(kernels: Library) -> None:
    tiers = Tiers(Case(), kernels, "hkivi5", "turbo3u")
    with pytest.raises(CacheError, match=r"got lowest int64 \(2,\), expected int64 \(1,\)"):
        tiers.run(np.zeros(2, np.int64))
    x = np.zeros((1, 3, 5, 64), np.float16)
    with pytest.raises(CacheError, match="got 6 tokens in keys"):
        UnencodedPiece(keys=x, values=x, count=6, position=0)
    strange = UnencodedPiece(keys=x[..., :48], values=x[..., :48], count=5, position=0)
    tiers.pieces.append(strange)
    with pytest.raises(CacheError, match="over keys"):
        tiers.run(np.zeros(1, np.int64))
    tiers.pieces, tiers.cold = [], None
    with pytest.raises(CacheError, match="over keys none"):
        tiers.run(np.zeros(1, np.int64))


def test_elements_out_of_line_are_refused(kernels: Library) -> None:
    tiers = Tiers(Case(dim=32, blocks=0), kernels, "f16", "f16")
    x = np.zeros((1, 3, 5, 64), np.float16)
    tiers.pieces[-1] = UnencodedPiece(keys=x[..., ::2], values=x[..., ::2], count=5, position=0)
    with pytest.raises(CacheError, match="last axis is not contiguous"):
        tiers.run(np.zeros(1, np.int64))


def test_unencoded_bfloat16(kernels: Library) -> None:
    tiers = Tiers(Case(blocks=0, queries=2), kernels, "f16", "f16")
    piece = tiers.pieces[1]
    bits = np.asarray(mx.array(piece.keys).astype(mx.bfloat16).view(mx.uint16))
    tiers.pieces[1] = UnencodedPiece(
        keys=bits, values=bits, count=piece.count, position=piece.position
    )
    exact = (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    tiers.known[1] = exact, exact
    lowest = _lowest(tiers, hidden=2)
    _assert_close(tiers.run(lowest), tiers.expected(lowest))
