"""The two-tier cache as its rules read: a Python list of tokens, one appended at a time."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from kvcache.codecs import Codec
from kvcache.native.codec import CpuCodec, Role
from kvcache.tiers.ledger import TierSizes

Array = npt.NDArray[np.float64]
Block = npt.NDArray[np.float32]
Coder = Callable[[Block], Block]


@dataclass(frozen=True)
class Token:
    """Keys and values [B, Hkv, D] of one position."""

    position: int
    key: Array
    value: Array
    tier: str


@dataclass
class NaiveTwoTier:
    """keys, values: what encoding does to a block [B, Hkv, M, D].

    periods: of the rotary embedding, pairs (2i, 2i + 1).
    """

    sizes: TierSizes
    keys: Coder
    values: Coder
    periods: Array
    tokens: list[Token] = field(default_factory=list)
    total: int = 0
    evicted: int = 0
    origin: int = 0  # of the evicted ones, those before the first block's edge

    def append(self, k: Array, v: Array) -> None:
        """k, v [B, Hkv, L, D]."""
        for i in range(k.shape[2]):
            self._append_one(k[:, :, i], v[:, :, i])

    def attend(self, q: Array, k: Array, v: Array, *, scale: float) -> Array:
        """The outputs [B, Hq, L, D] of new tokens; then they are appended."""
        fresh = [Token(self.total + i, k[:, :, i], v[:, :, i], "new") for i in range(k.shape[2])]
        before = [*self.tokens, *fresh]
        positions = np.array([token.position for token in before])
        keys = np.stack([token.key for token in before], axis=2)
        values = np.stack([token.value for token in before], axis=2)
        rows = []
        # Which tokens the cache would hold if they came one by one; not what is in them.
        one_by_one = replace(self, tokens=list(self.tokens), keys=_as_it_is, values=_as_it_is)
        for i, new in enumerate(fresh):
            held = [*(token.position for token in one_by_one.tokens), new.position]
            seen = np.isin(positions, held)
            if self.sizes.window is not None:
                seen &= (positions > new.position - self.sizes.window) & (positions <= new.position)
            turned = self._turn(q[:, :, i], -one_by_one.evicted)
            scores = np.where(
                positions[seen] < self.sizes.pinned,
                _scores(turned, keys[:, :, seen]),
                _scores(q[:, :, i], keys[:, :, seen]),
            )
            rows.append(_weighed(scale * scores, values[:, :, seen]))
            one_by_one.append(new.key[:, :, None], new.value[:, :, None])
        self.append(k, v)
        return np.stack(rows, axis=2)

    def rewind(self, count: int) -> None:
        target = max(0, self.total - count)
        if self.sizes.window is not None:
            self._rewind_window(target)
            return
        hot = [t.position for t in self.tokens if t.tier == "hot"]
        encoded = self.evicted or any(t.tier == "cold" for t in self.tokens)
        if not encoded or (target >= min(hot, default=self.total)):
            self._drop_from(target)
            return
        edge = target - (target - self.sizes.pinned - self.origin) % self.sizes.block
        if not any(t.tier == "cold" and t.position < edge for t in self.tokens):
            edge = min(target, self.sizes.pinned)
        self._drop_from(edge)

    def _rewind_window(self, target: int) -> None:
        """Exactly there, if the next token finds all that it sees; else to the beginning."""
        oldest = min((t.position for t in self.tokens), default=self.total)
        if target < self.total:
            self._drop_from(
                target if oldest <= max(0, target + 1 - (self.sizes.window or 0)) else 0
            )
        # A block of which some is gone is no block.
        cold = [i for i, token in enumerate(self.tokens) if token.tier == "cold"]
        for i in cold[len(cold) - len(cold) % self.sizes.block :]:
            self.tokens[i] = replace(self.tokens[i], tier="hot")

    def restart(self, total: int) -> None:
        """Forget all but the sinks, and go on where a cache of `total` tokens begins."""
        fresh = NaiveTwoTier(self.sizes, _as_it_is, _as_it_is, self.periods)
        nothing = np.zeros((1, 1, total, 1))
        fresh.append(nothing[:, :, 1:], nothing[:, :, 1:])
        before = fresh.evicted
        fresh.append(nothing[:, :, :1], nothing[:, :, :1])
        evicted = fresh.evicted if fresh.count("hot") + fresh.count("cold") else before
        self.tokens = [t for t in self.tokens if t.tier == "pinned"]
        whole = self.count("pinned") == self.sizes.pinned
        self.origin = self.evicted = evicted if whole else 0
        self.total = len(self.tokens) + self.evicted

    def replan(
        self, sizes: TierSizes, keys: Coder, values: Coder, held: tuple[Array, Array]
    ) -> None:
        """The same tokens come once more, as `held` has them [B, Hkv, held, D]."""
        old, total = self.tokens, self.total
        self.sizes, self.keys, self.values = sizes, keys, values
        self.origin, self.tokens = self.evicted, []
        for n, token in enumerate(old):
            self.total = token.position
            self._append_one(held[0][:, :, n], held[1][:, :, n])
        self.total = total

    def _drop_from(self, position: int) -> None:
        self.tokens = [t for t in self.tokens if t.position < position]
        self.total = position
        if position <= self.sizes.pinned:
            self.evicted = self.origin = 0

    def count(self, tier: str) -> int:
        return sum(token.tier == tier for token in self.tokens)

    def held_keys(self) -> Array:
        return np.stack([token.key for token in self.tokens], axis=2)

    def held_values(self) -> Array:
        return np.stack([token.value for token in self.tokens], axis=2)

    def _append_one(self, key: Array, value: Array) -> None:
        tier = "pinned" if self.total < self.sizes.pinned else "hot"
        self.tokens.append(Token(self.total, key, value, tier))
        self.total += 1
        if self.count("hot") == self.sizes.hot + self.sizes.block:
            self._migrate()

    def _migrate(self) -> None:
        hot = [i for i, token in enumerate(self.tokens) if token.tier == "hot"]
        block = hot[: self.sizes.block]
        keys = _coded(self.keys, [self.tokens[i].key for i in block])
        values = _coded(self.values, [self.tokens[i].value for i in block])
        for n, i in enumerate(block):
            self.tokens[i] = Token(self.tokens[i].position, keys[:, :, n], values[:, :, n], "cold")
        while self.count("cold") > self.sizes.slots * self.sizes.block:
            oldest = next(i for i, token in enumerate(self.tokens) if token.tier == "cold")
            del self.tokens[oldest]
            self.evicted += 1

    def _turn(self, q: Array, by: int) -> Array:
        as_complex = q[..., 0::2] + 1j * q[..., 1::2]
        turned = as_complex * np.exp(1j * by / self.periods)
        return np.stack([turned.real, turned.imag], axis=-1).reshape(q.shape)


def _scores(q: Array, keys: Array) -> Array:
    """q [B, Hq, D], keys [B, Hkv, S, D] -> [B, Hkv, G, S]; head h reads keys of h // G."""
    batch, heads, dim = q.shape
    grouped = q.reshape(batch, keys.shape[1], heads // keys.shape[1], dim)
    scores: Array = grouped @ keys.swapaxes(2, 3)
    return scores


def _weighed(scores: Array, values: Array) -> Array:
    """The outputs [B, Hq, D] of scores [B, Hkv, G, S] and values [B, Hkv, S, D]."""
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    out = weights / weights.sum(axis=-1, keepdims=True) @ values
    outputs: Array = out.reshape(values.shape[0], -1, values.shape[3])
    return outputs


def _as_it_is(block: Array) -> Array:
    return block


def coder(codec: Codec) -> Coder:
    """A codec by MLX's operations."""
    return lambda block: np.asarray(codec.decode(codec.encode(mx.array(block))))


def cpu_coders(keys: Codec, values: Codec, tokens: int) -> tuple[Coder, Coder]:
    """A pair of codecs by the CPU kernels, which may round ties another way.

    By MLX where the kernels do not take both.
    """

    def by_kernels(role: Role, block: Block) -> CpuCodec | None:
        codec = keys if role is Role.KEYS else values
        return CpuCodec.of(
            codec, tokens=tokens, heads=block.shape[1], dim=block.shape[3], role=role
        )

    def code(role: Role, block: Block) -> Block:
        both = [by_kernels(one, block) for one in Role]
        mine = by_kernels(role, block)
        if mine is None or None in both:
            return coder(keys if role is Role.KEYS else values)(block)
        records = np.zeros((1, *block.shape[:2], mine.record_bytes), np.uint8)
        mine.encode(block, records)
        return mine.decode(records)

    return partial(code, Role.KEYS), partial(code, Role.VALUES)


def _coded(code: Coder, tokens: list[Array]) -> Array:
    return code(np.stack(tokens, axis=2).astype(np.float32)).astype(np.float64)
