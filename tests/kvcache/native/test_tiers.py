"""Attention over tiers against its definition in float64 over the decoded blocks."""

from ctypes import addressof
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest

from kvcache import Rotation
from kvcache.codecs import NAMES, codec
from kvcache.codecs.base import Encoded
from kvcache.native import structs
from kvcache.native.build import Sources
from kvcache.native.codec import CpuCodec, Role
from kvcache.native.library import Library
from kvcache.native.structs import Array, Bytes, Floats, address, strided

TAKEN = tuple(name for name in NAMES if not name.endswith("p"))
Double = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
SCALE = 0.13
TOLERANCE = 3e-4  # a query of 15 bits against wide score spreads
LET_GO = 3  # blocks


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
    hot: int = 107  # in a ring of 120
    spread: float = 1.0
    traditional: bool = True
    ring: bool = False  # cold tokens are not encoded

    @property
    def evicted(self) -> int:
        """Tokens let go."""
        return LET_GO * self.tokens


class Tiers:
    """Random tokens in their tiers, and what the kernels should make of them."""

    def __init__(
        self, case: Case, kernels: Library, keys: str, values: str, hot: type = np.float16
    ) -> None:
        self.case, self.kernels = case, kernels
        self.rng = np.random.default_rng(case.dim + case.queries)
        heads = case.heads * case.groups
        shape = case.batch, heads, case.queries, case.dim
        self.q = self.rng.normal(size=shape).astype(np.float32) * case.spread
        self.rotation = Rotation(
            periods=30.0 ** np.linspace(0, 1, case.dim // 2 - 3), traditional=case.traditional
        )
        self.gone = [case.evicted + 7 * at for at in range(case.queries)]
        self.known: list[tuple[Double, Double]] = []  # keys and values, in order
        self._held: list[object] = []  # what the memory points to
        self.memory = structs.TierMemory(pinned=self._ring(case.sinks, case.sinks, 0, np.float16))
        if case.ring:
            self.memory.unencoded = self._ring(
                case.blocks * case.tokens, 400, case.evicted, np.float32
            )
        elif case.blocks:
            self._fill_cold(keys, values)
        number = (LET_GO + case.blocks) * case.tokens
        self.memory.hot = self._ring(case.hot, 120, number, hot)
        self.new = self._tokens(case.queries), self._tokens(case.queries)
        self.known.append(tuple(x.astype(np.float64) for x in self.new))
        count = sum(k.shape[2] for k, _ in self.known)
        self.at = np.arange(count) + np.where(np.arange(count) < case.sinks, 0, case.evicted)
        self.position = int(self.at[-case.queries])

    def _tokens(self, count: int) -> Floats:
        case = self.case
        shape = case.batch, case.heads, count, case.dim
        x = self.rng.normal(size=shape) * case.spread
        x[..., 3] *= 4
        return (x + self.rng.normal(size=(1, case.heads, 1, case.dim))).astype(np.float32)

    def _ring(self, count: int, capacity: int, number: int, kind: type) -> structs.Ring:
        """`count` tokens from a number, in views into something larger."""
        views, known = [], []
        for _ in range(2):
            x, exact = _stored(self._tokens(count), kind)
            memory = np.full((*x.shape[:2], capacity + 7, x.shape[3]), 0x7E00, np.uint16)
            if kind is np.float32:
                memory = memory.astype(np.float32)
            view = memory.view(x.dtype)[:, :, 3 : 3 + capacity]
            view[:, :, (number + np.arange(count)) % capacity] = x
            views.append(view)
            known.append(exact)
        self._held += views
        self.known.append((known[0], known[1]))
        return structs.Ring(*map(strided, views), capacity)

    def _fill_cold(self, keys: str, values: str) -> None:
        case = self.case
        coders, tables, known = [], [], []
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
            known.append(_decoded(coder, records))
            tables.append(self._scattered(records))
            coders.append(coder)
        self._held += coders
        self.known.append((known[0], known[1]))
        self.memory.key_form, self.memory.value_form = (addressof(each.form) for each in coders)
        self.memory.keys, self.memory.values = map(address, tables)

    def _scattered(self, records: Bytes) -> Integers:
        """Where slots of records begin, twice over; they lie in memory in an order of their own."""
        blocks, slots = len(records), self.case.blocks + 1
        backwards = np.ascontiguousarray(records[::-1])
        addresses = np.zeros((2, slots), np.int64)
        for at in range(blocks):
            addresses[:, (LET_GO + at) % slots] = address(backwards[blocks - 1 - at])
        self._held += [backwards, addresses]
        return addresses

    def run(self, lowest: Integers) -> Floats:
        case, periods = self.case, self.rotation.periods
        gone = np.array(self.gone, np.int64)
        step = structs.TierStep(
            batch=case.batch,
            queries=case.queries,
            length=case.queries,
            heads=case.heads * case.groups,
            kv_heads=case.heads,
            dim=case.dim,
            scale=SCALE,
            periods=address(periods),
            pairs=len(periods),
            apart=not case.traditional,
            gone=address(gone),
            lowest=address(lowest),
            lowest_stride=case.queries if lowest.ndim == 2 else 0,
            pinned=case.sinks,
            start=case.sinks,
            block=case.tokens,
            slots=case.blocks + 1,
            total=self.position,
            first=LET_GO,
            end=LET_GO + case.blocks,
        )
        return self.kernels.attend_tiers(self.q, step, self.memory, self.new)

    def expected(self, lowest: Integers) -> Double:
        case = self.case
        keys, values = (np.concatenate(x, axis=2) for x in zip(*self.known, strict=True))
        q_sink = np.asarray(self.rotation(mx.array(self.q), [-gone for gone in self.gone]))
        out = np.zeros(self.q.shape)
        for row, head, query in np.ndindex(self.q.shape[:3]):
            k, v = keys[row, head // case.groups], values[row, head // case.groups]
            low = lowest[query] if lowest.ndim == 1 else lowest[row, query]
            pinned = self.at < case.sinks
            seen = pinned | ((self.at >= low) & (self.at <= self.position + query))
            scores = k @ self.q[row, head, query].astype(np.float64)
            scores[pinned] = k[pinned] @ q_sink[row, head, query]
            scores = np.where(seen, scores * SCALE, -np.inf)
            weights = np.exp(scores - scores.max())
            out[row, head, query] = weights / weights.sum() @ v
        return out


def _stored(x: Floats, kind: type) -> tuple[Array, Double]:
    """Tokens as they lie in memory, uint16 standing for bfloat16, and what they stand for."""
    if kind is not np.uint16:
        stored: Array = x.astype(kind)
        return stored, stored.astype(np.float64)
    bits = np.asarray(mx.array(x).astype(mx.bfloat16).view(mx.uint16))
    return bits, (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def _decoded(coder: CpuCodec, records: Bytes) -> Double:
    """Tokens [B, Hkv, N * M, D] of records, by MLX."""
    blocks = coder.codec.decode(Encoded(parts=coder.to_parts(records), dim=coder.dim))
    joined = np.asarray(blocks).transpose(1, 2, 0, 3, 4)
    return joined.reshape(*joined.shape[:2], -1, coder.dim).astype(np.float64)


def _assert_close(got: Floats, want: Double, tolerance: float = TOLERANCE) -> None:
    assert np.abs(got - want).max() < tolerance * np.abs(want).max()


def _lowest(tiers: Tiers, *, hidden: int) -> Integers:
    """Each query's first visible token, `hidden` past the sinks for the first query."""
    first = tiers.case.sinks + tiers.case.evicted + hidden
    return np.arange(first, first + tiers.case.queries, dtype=np.int64)


CASES = {
    "decode": Case(),
    "two-rows": Case(batch=2, heads=1, groups=4, queries=2, dim=128, tokens=32, blocks=7),
    "odd": Case(heads=2, groups=5, queries=7, dim=80, tokens=96, blocks=3),
    "prefill": Case(batch=2, heads=2, groups=3, queries=40, dim=96, tokens=128, blocks=2),
    "many-groups": Case(heads=1, groups=8, tokens=16, blocks=9, dim=64),
    "no-cold": Case(groups=1, queries=5, blocks=0, dim=16),
    "sharp": Case(spread=2.0, groups=7, queries=3),
    "apart": Case(batch=2, queries=5, traditional=False),
    "ring": Case(batch=2, queries=3, ring=True),
    "wide": Case(heads=1, groups=3, queries=2, dim=256, tokens=32, blocks=5),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize(
    "pair", [("hkivi4", "turbo4u"), ("hkivi5", "turbo4u"), ("kivi4", "kvarn6")]
)
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
    lowest = tiers.case.evicted + np.array([[4, 4], [70, 71], [360, 361]], np.int64)
    _assert_close(tiers.run(lowest), tiers.expected(lowest))


def test_nothing_but_itself_and_the_sinks(kernels: Library) -> None:
    tiers = Tiers(Case(queries=9), kernels, "hkivi5", "turbo3u")
    lowest = tiers.position + np.arange(9)
    _assert_close(tiers.run(lowest), tiers.expected(lowest))


@pytest.mark.parametrize("queries", [1, 3])
def test_values_that_cannot_matter_are_not_read(kernels: Library, queries: int) -> None:
    """Values of blocks that have together less than 1 in 200 of the softmax mass."""
    tiers = Tiers(
        Case(queries=queries, blocks=40, heads=2, spread=2.0), kernels, "hkivi5", "turbo3u"
    )
    lowest = _lowest(tiers, hidden=0)
    want = tiers.expected(lowest)
    longest = max(np.abs(v).max() for _, v in tiers.known)
    got = tiers.run(lowest)
    assert np.abs(got - want).max() < 2 * 0.005 / 0.995 * longest
    # Were they read, it would be as near as over fewer blocks.
    assert np.abs(got - want).max() > TOLERANCE * np.abs(want).max()


def test_what_is_not_read_does_not_depend_on_threads(compiled: Sources) -> None:
    outputs = []
    for threads in (1, 2, 3):
        library = Library(threads, compiled)
        tiers = Tiers(Case(queries=2, blocks=50, spread=2.0), library, "hkivi5", "turbo3u")
        outputs.append(tiers.run(_lowest(tiers, hidden=0)))
        library.close()
    for output in outputs[1:]:
        _assert_close(output, outputs[0].astype(np.float64), 1e-5)


@pytest.mark.parametrize("factor", [0.0, 1e-6, 1e4])
@pytest.mark.parametrize("queries", [1, 12])
def test_extreme_queries(kernels: Library, factor: float, queries: int) -> None:
    tiers = Tiers(Case(queries=queries), kernels, "hkivi5", "turbo3u")
    tiers.q[...] *= factor
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
    # The last of its 15 bits are worth 50 times as much.
    _assert_close(tiers.run(lowest), tiers.expected(lowest), 50 * TOLERANCE)


def test_same_results_each_time(kernels: Library) -> None:
    tiers = Tiers(Case(queries=3, blocks=20), kernels, "hkivi5", "turbo3u")
    lowest = _lowest(tiers, hidden=9)
    first = tiers.run(lowest)
    for _ in range(5):
        np.testing.assert_array_equal(tiers.run(lowest), first)


@pytest.mark.parametrize("kind", [np.uint16, np.float32])
def test_hot_tokens_of_every_dtype(kernels: Library, kind: type) -> None:
    tiers = Tiers(Case(blocks=0, queries=2), kernels, "f16", "f16", hot=kind)
    lowest = _lowest(tiers, hidden=2)
    _assert_close(tiers.run(lowest), tiers.expected(lowest))
