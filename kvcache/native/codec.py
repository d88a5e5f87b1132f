"""A codec's blocks in the layout that the CPU kernels read (record.h, key_codes.h, value_codes.h).

A record holds one block of one KV head, keys or values. This module maps the
codecs of `kvcache.codecs` to that layout and back; it knows no cache.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Self

import mlx.core as mx
import numpy as np

from kvcache.codecs import Codec
from kvcache.codecs.affine import (
    FEEDBACK_SPANS,
    ChannelAffineCodec,
    TokenAffineCodec,
    group_size,
)
from kvcache.codecs.base import Parts
from kvcache.codecs.kvarn import KVarNCodec
from kvcache.codecs.lloyd_max import levels
from kvcache.codecs.packing import pack
from kvcache.codecs.trellis import TrellisCodec
from kvcache.codecs.trellis import levels as trellis_levels
from kvcache.codecs.turbo import FittedTurboCodec, TurboCodec
from kvcache.codecs.unencoded import UnencodedCodec
from kvcache.errors import CacheError
from kvcache.native.build import Sources
from kvcache.native.library import Library, codes, library
from kvcache.native.structs import (
    HEAD_DIM_STEP,
    MOST_LEVELS,
    Array,
    BlockForm,
    Bytes,
    Floats,
    address,
)

_TOKEN_STEP = 16
_RUN = 32  # tokens whose value codes of 3 or 5 bits fill whole words
_CODES = "words"
_UNENCODED = "values"


class Role(Enum):
    """What a block holds; keys and values have layouts of their own."""

    KEYS = 0
    VALUES = 1


# For each codec: its family in record.h, and where there its float16 arrays go.
_FAMILIES: Mapping[type[Codec], tuple[int, Mapping[str, str]]] = {
    UnencodedCodec: (0, {}),
    TokenAffineCodec: (1, {"scales": "token_scales", "zeros": "token_zeros"}),
    ChannelAffineCodec: (2, {"scales": "channel_scales", "zeros": "channel_zeros"}),
    TurboCodec: (3, {"scales": "token_scales"}),
    FittedTurboCodec: (4, {"scales": "token_scales"}),
    TrellisCodec: (6, {"scales": "token_scales"}),
    KVarNCodec: (
        5,
        {
            "token_scales": "token_scales",
            "channel_scales": "channel_scales",
            "channel_means": "channel_zeros",
        },
    ),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class CpuCodec:
    """Encodes and decodes records of one layer's keys or values. Make one by `of`."""

    codec: Codec
    role: Role
    tokens: int
    heads: int
    dim: int
    form: BlockForm
    kernels: Library
    _held: tuple[Array, ...] = field(repr=False)  # memory that `form` points to

    @classmethod
    def of(
        cls,
        codec: Codec,
        *,
        tokens: int,
        heads: int,
        dim: int,
        role: Role,
        kernels: Library | None = None,
    ) -> Self | None:
        """The CPU's form of a codec for blocks [Hkv, M, D], or None where the kernels have none.

        They take every codec but the inner-product form of TurboQuant, D and M multiples of 16,
        values of 3 and 5 bits and trellises of 3 in multiples of 32 tokens, and per-token affine
        codes where their group is a multiple of 16 channels (so not D 80). Raises CacheError for
        a D that the codec cannot rotate.
        """
        if not _is_taken(codec, tokens, dim, role):
            return None
        form, held = _form(codec, tokens, heads, dim, role)
        kernels = kernels or library()
        if (coding := coding_of(codec)) is not None:
            form.coding = kernels.coding(coding)
        return cls(
            codec=codec,
            role=role,
            tokens=tokens,
            heads=heads,
            dim=dim,
            form=form,
            kernels=kernels,
            _held=held,
        )

    @property
    def record_bytes(self) -> int:
        """Bytes of one block of one KV head, all included."""
        return int(self.form.record_bytes)

    def encode(self, x: Array, out: Bytes) -> None:
        """Encode N blocks x [B, Hkv, N * M, D] into out [N, B, Hkv, record_bytes].

        x: float16, uint16 (bfloat16's bits) or float32, the last axis contiguous.
        Raises CacheError for shapes that do not fit each other or this codec.
        """
        blocks, batch, heads = out.shape[:3]
        self._check_records(out)
        if x.shape != (batch, heads, blocks * self.tokens, self.dim):
            raise CacheError(
                f"got tokens {x.shape} for records {out.shape}, expected "
                f"{(batch, heads, blocks * self.tokens, self.dim)}"
            )
        self.kernels.encode(self.form, x, out)

    def decode(self, records: Bytes) -> Floats:
        """Tokens [B, Hkv, N * M, D] of records [N, B, Hkv, record_bytes], rotation undone."""
        self._check_records(records)
        return self.kernels.decode(self.form, records)

    def to_parts(self, records: Bytes) -> Parts:
        """The arrays of `codec` [N, B, Hkv, ...]; loses nothing."""
        self._check_records(records)
        if isinstance(self.codec, UnencodedCodec):
            return {_UNENCODED: mx.array(_halves(records, 0, (self.tokens, self.dim)))}
        codes = self.kernels.unpack(self.form, records)
        parts = {_CODES: pack(mx.array(codes), self.codec.code_bits)}
        for name, (at, shape) in self._places().items():
            parts[name] = mx.array(_halves(records, at, shape))
        return parts

    def from_parts(self, parts: Parts) -> Bytes:
        """Records [N, B, Hkv, record_bytes] of the arrays of `codec` [N, B, Hkv, ...].

        Raises CacheError for arrays of other names, shapes or dtypes.
        """
        self._check_parts(parts)
        if isinstance(self.codec, UnencodedCodec):
            values = np.ascontiguousarray(parts[_UNENCODED])
            return values.reshape(*values.shape[:3], -1).view(np.uint8)
        words = np.ascontiguousarray(parts[_CODES])
        codes = self.kernels.codes(words, bits=self.codec.code_bits, dim=self.dim)
        records = np.empty((*codes.shape[:3], self.record_bytes), np.uint8)
        self.kernels.pack(self.form, codes, records)
        for name, (at, shape) in self._places().items():
            _halves(records, at, shape)[...] = np.asarray(parts[name])
        return records

    def _places(self) -> dict[str, tuple[int, tuple[int, ...]]]:
        """Offset and shape of the float16 arrays in a record."""
        shapes = self.codec.shapes(self.tokens, self.dim)
        _, names = _FAMILIES[type(self.codec)]
        return {
            name: (getattr(self.form, place), shapes[name].shape) for name, place in names.items()
        }

    def _check_parts(self, parts: Parts) -> None:
        specs = self.codec.shapes(self.tokens, self.dim)
        outer = next(iter(parts.values())).shape[:2] if parts else ()
        found = {name: (part.shape, part.dtype) for name, part in parts.items()}
        wanted = {
            name: ((*outer, self.heads, *spec.shape), spec.dtype) for name, spec in specs.items()
        }
        if found != wanted:
            raise CacheError(f"got parts {found} for {self.codec.name}, expected {wanted}")

    def _check_records(self, records: Bytes) -> None:
        want = (self.heads, self.record_bytes)
        if records.ndim != 4 or records.shape[2:] != want or records.dtype != np.uint8:
            raise CacheError(
                f"got records {records.dtype} {records.shape} for {self.codec.name}, expected "
                f"uint8 [blocks, B, {want[0]}, {want[1]}]"
            )


def coding_of(codec: Codec) -> Sources | None:
    """What the kernels are compiled from for a codec's codes; None where it needs nothing."""
    if type(codec) not in _FAMILIES or isinstance(codec, UnencodedCodec):
        return None
    return codes(codec.code_bits, trellis=isinstance(codec, TrellisCodec))


def _is_taken(codec: Codec, tokens: int, dim: int, role: Role) -> bool:
    if type(codec) not in _FAMILIES or tokens % _TOKEN_STEP or dim % HEAD_DIM_STEP:
        return False
    if codec.rotation is not None and codec.rotation.rounds != 1:
        return False
    if isinstance(codec, UnencodedCodec) and codec.dtype != mx.float16:
        return False
    if isinstance(codec, TokenAffineCodec) and group_size(dim) % HEAD_DIM_STEP:
        return False
    either = role is Role.VALUES or isinstance(codec, TrellisCodec)
    split = either and codec.code_bits in (3, 5)
    return not split or tokens % _RUN == 0


def _form(
    codec: Codec, tokens: int, heads: int, dim: int, role: Role
) -> tuple[BlockForm, tuple[Array, ...]]:
    """The form, and the arrays that it points to."""
    family, names = _FAMILIES[type(codec)]
    form = BlockForm(family=family, role=role.value, bits=codec.code_bits, tokens=tokens, dim=dim)
    form.group = group_size(dim) if isinstance(codec, TokenAffineCodec) else dim
    form.token_scales = form.token_zeros = form.channel_scales = form.channel_zeros = -1
    at = tokens * dim * codec.code_bits // 8
    shapes = codec.shapes(tokens, dim)
    for name, place in names.items():
        setattr(form, place, at)
        at += shapes[name].nbytes
    form.record_bytes = at
    if isinstance(codec, KVarNCodec):
        form.centre = (2**codec.code_bits - 1) / 2
    if isinstance(codec, TurboCodec):
        table = levels(codec.code_bits)
        form.levels = len(table)
        # Repeated, so that bits above a code do not matter to a look-up.
        form.table[:] = table * (MOST_LEVELS // len(table))
    if isinstance(codec, TrellisCodec):
        positive = trellis_levels(codec.code_bits)[2**codec.code_bits :]
        form.levels = len(positive)
        form.table[: len(positive)] = positive
    held: list[Array] = []

    def kept(array: mx.array) -> int:
        held.append(np.ascontiguousarray(array))
        return address(held[-1])

    if (basis := codec.basis(heads, dim)) is not None:
        form.signs, form.basis = kept(basis.signs), kept(basis.matrix)
        form.inverse = kept(basis.transposed)
    if isinstance(codec, ChannelAffineCodec) and codec.feedback is not None:
        feedback = codec.feedback
        form.order, form.spread = kept(feedback.order), kept(feedback.weights)
        form.span = FEEDBACK_SPANS[codec.code_bits]
    return form, tuple(held)


def _halves(records: Bytes, at: int, shape: tuple[int, ...]) -> Array:
    """A float16 array [..., *shape] that lies `at` bytes into each record."""
    size = 2 * int(np.prod(shape))
    flat = records[..., at : at + size]
    view = flat.view(np.float16)
    return np.lib.stride_tricks.as_strided(
        view, (*records.shape[:-1], *shape), (*records.strides[:-1], *_steps(shape))
    )


def _steps(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in bytes of a float16 array of this shape."""
    return tuple(2 * int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
