"""What the caches of one plan are in pieces, and how they are made of pieces again.

    pins   the pinned tokens of layers that see all tokens
    block  one encoded block of these layers: tokens of the conversation that never change
    rest   the ids of a conversation, and all else that its caches hold: hot tokens, and whatever
           layers with a window hold

Each is named by the plan, model included, and by a hash of all ids up to its end; so the block of
two conversations that begin alike is one piece. Knows caches and ids, no folder.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from app.wake.piece import (
    Array,
    DamagedPieceError,
    Layout,
    Part,
    about_in,
    bytes_of,
    of_bytes,
    to_mlx,
)
from kvcache import CachePlan, TwoTierKVCache
from kvcache.errors import EmberError
from kvcache.integrity import MOST
from kvcache.tiers.ledger import Ledger, TierSizes
from models.text.tokenized_text import TokenizedText

Ids = npt.NDArray[np.int32]

_LAYOUT = "ember kept 1"
_PLAN_DIGITS, _DIGITS = 16, 32
PINS, BLOCK, REST = "pins", "block", "rest"
_NEEDS = "needs"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Layers whose caches hold alike."""

    sizes: TierSizes
    layers: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Rest:
    """A conversation that was kept.

    ledgers: of each kind of layers, in their order. said: its text, where that is known.
    """

    name: str
    ids: Ids
    ledgers: tuple[Ledger, ...]
    said: TokenizedText | None


class Pieces:
    """caches: of all layers of a model; their plans count, not what they hold.

    model: what tells its file from others.
    """

    def __init__(self, caches: Sequence[TwoTierKVCache], plan: CachePlan, model: str) -> None:
        self._heads, self._dim = plan.shape.kv_heads, plan.shape.head_dim
        self._dtype = plan.hot_dtype.mx
        sizes = dict.fromkeys(cache.plan.sizes for cache in caches)
        self.kinds = tuple(
            Kind(
                sizes=each,
                layers=tuple(at for at, cache in enumerate(caches) if cache.plan.sizes == each),
            )
            for each in sorted(sizes, key=lambda each: each.window is not None)
        )
        # Of each layer, whose codecs may be its own.
        self._specs = [cache.part_specs(self._dim) for cache in caches]
        described = json.dumps([_LAYOUT, model, *(cache.policy for cache in caches)])
        self.plan = _digest(described.encode())[:_PLAN_DIGITS]

    @property
    def whole(self) -> Kind | None:
        """The layers that see all tokens, if there are any."""
        return self.kinds[0] if self.kinds[0].sizes.window is None else None

    @property
    def has_windows(self) -> bool:
        """Whether any layer sees fewer."""
        return self.kinds[-1].sizes.window is not None

    def ledgers(self, caches: Sequence[TwoTierKVCache]) -> tuple[Ledger, ...]:
        """Of each kind of layers."""
        return tuple(caches[kind.layers[0]].ledger for kind in self.kinds)

    # -- names --

    def pins_name(self, ids: Ids) -> str:
        """Of the pinned tokens of a conversation."""
        pinned = self.whole.sizes.pinned if self.whole else 0
        return self._named(_digest(ids[:pinned].tobytes()), PINS)

    def block_names(self, ids: Ids, origin: int = 0) -> list[str]:
        """Of all whole blocks of a conversation, from number 0 on.

        origin: tokens that were let go before block 0.
        """
        if self.whole is None:
            return []
        sizes = self.whole.sizes
        start = sizes.pinned + origin
        edges = [start, *range(start + sizes.block, len(ids) + 1, sizes.block)]
        link, names = _digest(f"{origin}:".encode() + ids[:start].tobytes()), list[str]()
        for at, end in pairwise(edges):
            link = _digest(link.encode() + ids[at:end].tobytes())
            names.append(self._named(link, BLOCK))
        return names

    def rest_name(self, ids: Ids) -> str:
        """Of a conversation that ends here."""
        return self._named(_digest(ids.tobytes()), REST)

    def is_rest(self, name: str) -> bool:
        """Whether a piece is a conversation under this plan."""
        return name.startswith(f"{self.plan}.") and name.endswith(f".{REST}")

    def needed(self, ids: Ids, ledger: Ledger) -> list[str]:
        """The pins and the blocks that a ledger of layers tells of that see all tokens."""
        if self.whole is None:
            return []
        names = self.block_names(ids[: ledger.hot_start], ledger.origin)
        pins = [self.pins_name(ids)] if ledger.pinned else []
        return [*pins, *names[ledger.first : ledger.end]]

    # -- from caches --

    def pins(self, caches: Sequence[TwoTierKVCache], name: str) -> tuple[Layout, Iterator[bytes]]:
        """The pinned tokens."""
        assert self.whole is not None
        layers = [caches[at] for at in self.whole.layers]
        layout = self._pins_layout(name)
        return layout, (_tokens(cache, slice(0, 2)) for cache in layers)

    def block(
        self, caches: Sequence[TwoTierKVCache], number: int, name: str
    ) -> tuple[Layout, Iterator[bytes]]:
        """One block of all layers that see all tokens, a layer at a time."""
        assert self.whole is not None
        layers = [caches[at] for at in self.whole.layers]
        return self._block_layout(name), (
            b"".join(map(bytes_of, cache.parts(number, number + 1))) for cache in layers
        )

    def rest(
        self, caches: Sequence[TwoTierKVCache], ids: Ids, name: str, said: bytes = b""
    ) -> tuple[Layout, Iterator[bytes]]:
        """All that is neither pinned nor in a block, a layer at a time."""
        ledgers = self.ledgers(caches)
        needs = " ".join(self.needed(ids, ledgers[0]))
        layout = self._rest_layout(name, len(ids), len(said), ledgers, needs)

        def contents() -> Iterator[bytes]:
            yield ids.tobytes() + said
            for kind in self.kinds:
                layers = [caches[at] for at in kind.layers]
                yield from (_tokens(cache, slice(2, 4)) for cache in layers if cache.ledger.hot)
                if kind.sizes.window is not None:
                    for cache in layers:
                        ledger = cache.ledger
                        if ledger.cold:
                            parts = cache.parts(ledger.first, ledger.end)
                            yield b"".join(map(bytes_of, parts))

        return layout, contents()

    # -- to caches --

    def rest_in(self, name: str, file: bytes) -> tuple[Layout, tuple[Ledger, ...]]:
        """What a file of this name must be, of its first bytes. Raises DamagedPieceError."""
        about = about_in(file)
        try:
            count, said = int(about["tokens"]), int(about["said"])
            numbers = [[int(each) for each in kind] for kind in json.loads(about["ledgers"])]
            ledgers = tuple(
                Ledger(sizes=kind.sizes, total=total, first=first, end=end, origin=origin)
                for kind, (total, first, end, origin) in zip(self.kinds, numbers, strict=True)
            )
            for each in ledgers:
                each.check()
        except (KeyError, ValueError, TypeError, RecursionError, EmberError) as error:
            raise DamagedPieceError("does not say what it holds") from error
        if not (0 < count <= MOST and 0 <= said <= MOST) or any(
            each.total != count for each in ledgers
        ):
            raise DamagedPieceError("does not say what it holds")
        return self._rest_layout(name, count, said, ledgers, about.get(_NEEDS, "")), ledgers

    def ids_in(self, name: str, data: bytes) -> Ids:
        """The ids that a rest of this name holds. Raises DamagedPieceError for others."""
        ids = np.frombuffer(data, np.int32)
        if self.rest_name(ids) != name:
            raise DamagedPieceError("holds other ids than its name says")
        return ids

    def hold(
        self,
        caches: Sequence[TwoTierKVCache],
        ledgers: Sequence[Ledger],
        pins: tuple[str, bytes] | None,
        rest: tuple[Layout, bytes] | None,
    ) -> None:
        """Fill caches but for blocks, which come by `put`.

        pins: name and file, None where nothing is pinned. rest: None for a conversation that ends
        with a block. Raises DamagedPieceError, changing nothing, where a file is not what it must
        be, and CacheError for what no cache holds.
        """
        pinned = dict[int, Array]()
        if self.whole is not None and pins is not None:
            (found,) = self._pins_layout(pins[0]).read(pins[1])
            pinned = dict(zip(self.whole.layers, found, strict=True))
        arrays = iter([] if rest is None else rest[0].read(rest[1])[2:])
        shape = (1, self._heads, self._dim)
        for kind, ledger in zip(self.kinds, ledgers, strict=True):
            hot = next(arrays) if ledger.hot else None
            cold = next(arrays) if ledger.cold and kind.sizes.window is not None else None
            count, cut = ledger.end - ledger.first, 0
            for row, at in enumerate(kind.layers):
                tokens = [
                    *self._pair(pinned.get(at)),
                    *self._pair(None if hot is None else hot[row]),
                ]
                caches[at].hold(ledger, shape, tokens)
                if cold is not None:
                    start, cut = cut, cut + count * self._block_bytes(at)
                    caches[at].put_parts(ledger.first, self._parts(at, cold[start:cut], count))

    def put(
        self, caches: Sequence[TwoTierKVCache], number: int, files: Sequence[tuple[str, bytes]]
    ) -> None:
        """Put blocks, by name, from a block number. Raises DamagedPieceError, putting none."""
        assert self.whole is not None
        found = [self._block_layout(name).read(file)[0] for name, file in files]
        cut = 0
        for at in self.whole.layers:
            start, cut = cut, cut + self._block_bytes(at)
            side_by_side = np.stack([each[start:cut] for each in found])
            caches[at].put_parts(number, self._parts(at, side_by_side, len(found)))

    # -- inside --

    def _named(self, digest: str, kind: str) -> str:
        return f"{self.plan}.{digest}.{kind}"

    def _about(self, name: str, **more: str) -> tuple[tuple[str, str], ...]:
        return ("layout", _LAYOUT), ("name", name), *more.items()

    def _pins_layout(self, name: str) -> Layout:
        assert self.whole is not None
        tokens = self._token_part("pinned", self.whole, self.whole.sizes.pinned)
        return Layout(parts=(tokens,), about=self._about(name))

    def _block_layout(self, name: str) -> Layout:
        assert self.whole is not None
        blocks = self._block_part("block", self.whole, 1)
        return Layout(parts=(blocks,), about=self._about(name))

    def _rest_layout(
        self, name: str, count: int, said: int, ledgers: Sequence[Ledger], needs: str
    ) -> Layout:
        """count: ids. said: bytes of the text."""
        parts = [
            Part(name="ids", shape=(count,), dtype=mx.int32),
            Part(name="said", shape=(said,), dtype=mx.uint8),
        ]
        for at, (kind, ledger) in enumerate(zip(self.kinds, ledgers, strict=True)):
            if ledger.hot:
                parts.append(self._token_part(f"hot.{at}", kind, ledger.hot))
            if ledger.cold and kind.sizes.window is not None:
                parts.append(self._block_part(f"cold.{at}", kind, ledger.end - ledger.first))
        numbers = [(each.total, each.first, each.end, each.origin) for each in ledgers]
        more = {
            "tokens": str(count),
            "said": str(said),
            "ledgers": json.dumps(numbers),
            _NEEDS: needs,
        }
        return Layout(parts=tuple(parts), about=self._about(name, **more))

    def _token_part(self, name: str, kind: Kind, count: int) -> Part:
        """Unencoded keys and values of a kind's layers."""
        shape = len(kind.layers), 2, self._heads, count, self._dim
        return Part(name=name, shape=shape, dtype=self._dtype)

    def _block_part(self, name: str, kind: Kind, count: int) -> Part:
        """Of each layer the parts of `count` blocks, one after another, as bytes."""
        nbytes = count * sum(map(self._block_bytes, kind.layers))
        return Part(name=name, shape=(nbytes,), dtype=mx.uint8)

    def _block_bytes(self, layer: int) -> int:
        """Of one block of a layer."""
        return self._heads * sum(spec.nbytes for _, spec in self._specs[layer])

    def _pair(self, tokens: Array | None) -> tuple[mx.array | None, mx.array | None]:
        """Keys and values [1, Hkv, S, D] of [2, Hkv, S, D]."""
        if tokens is None:
            return None, None
        keys, values = (to_mlx(each[None], self._dtype) for each in tokens)
        return keys, values

    def _parts(self, layer: int, data: Array, count: int) -> list[mx.array]:
        """The parts [count, 1, Hkv, ...] of a layer's blocks, as their bytes lie in a file.

        data: uint8, the parts of all blocks together, or of each block in a row of its own.
        """
        rows = data.reshape(count, -1) if data.ndim > 1 else None
        found, at = list[mx.array](), 0
        for _, spec in self._specs[layer]:
            nbytes = self._heads * spec.nbytes
            if rows is None:
                flat, at = data[at : at + count * nbytes], at + count * nbytes
            else:
                flat, at = rows[:, at : at + nbytes], at + nbytes
            shape = count, 1, self._heads, *spec.shape
            found.append(to_mlx(of_bytes(flat, spec.dtype).reshape(shape), spec.dtype))
        return found


def _tokens(cache: TwoTierKVCache, which: slice) -> bytes:
    """Keys, then values, of a cache's pinned or hot tokens."""
    return b"".join(bytes_of(array) for array in cache.unencoded()[which] if array is not None)


def needs_of(file: bytes) -> list[str]:
    """The other pieces that a rest is of no use without, of its first bytes; none for no rest."""
    try:
        return about_in(file).get(_NEEDS, "").split()
    except DamagedPieceError:
        return []


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_DIGITS]
