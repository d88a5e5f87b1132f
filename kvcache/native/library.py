"""The compiled kernels as Python functions on numpy arrays.

All arrays are float32 in C order unless said otherwise. One thread calls at a
time (the inference thread); the kernels' own threads live as long as the
process.
"""

import os
import sys
from ctypes import byref, c_char_p, c_int64, c_void_p, cast
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvcache.codecs.packing import words_per_token
from kvcache.errors import CacheError, EmberError, NativeUnavailableError, quoted
from kvcache.native import build, structs
from kvcache.native.structs import HEAD_DIM_STEP, Array, Bytes, Floats, address, checked, strided

_FOLDER = Path(__file__).parent
# What every cache needs; what is computed with codes is compiled for those that there are.
SOURCES = build.Sources(
    entry=_FOLDER / "operations.cpp",
    parts=(_FOLDER / "unencoded.cpp",),
)
# As many as `bench --threads` takes.
_MOST_THREADS = 1024


# What is computed with codes of any width.
ALL_CODES = build.Sources(entry=_FOLDER / "all_codes.cpp")


def codes(bits: int, *, trellis: bool = False) -> build.Sources:
    """What is computed with codes of a width, or with those of a trellis (coding.h)."""
    told = f"-DEMBER_BITS={bits}"
    if trellis:
        # A tenth slower without all of it.
        return build.Sources(entry=_FOLDER / "trellis.cpp", flags=("-O3", told))
    return build.Sources(entry=_FOLDER / "codes.cpp", flags=(told,))


class Library:
    """The kernels. Make one by `library()`.

    threads: that there are, the calling one among them; fewer than asked for where the
    system gives no more. sources: what it was compiled from.
    """

    def __init__(self, threads: int, sources: build.Sources = SOURCES) -> None:
        """Raises NativeUnavailableError."""
        self.sources = sources
        self._c = build.load(sources)
        self.threads = int(self._c.ember_start(threads))
        self._functions: dict[build.Sources, int] = {}

    def close(self) -> None:
        """End the kernels' threads."""
        self._c.ember_stop()

    def lend(self) -> tuple[c_void_p, c_void_p, c_void_p]:
        """Where the threads' pool, `AttendTiers` and small products are, for another library."""
        self._c.ember_pool.restype = self._c.ember_products.restype = c_void_p
        pool, products = c_void_p(self._c.ember_pool()), c_void_p(self._c.ember_products())
        return pool, cast(self._c.ember_attend_tiers, c_void_p), products

    def functions(self, of: build.Sources) -> int:
        """Where those of `codes` or `ALL_CODES` are; compiled where nobody needed them before.

        Raises NativeUnavailableError.
        """
        if of not in self._functions:
            find = build.load(of.beside(self.sources)).ember_functions
            find.restype = c_void_p
            self._functions[of] = find()
        return self._functions[of]

    @property
    def instructions(self) -> str:
        """Which instructions they were compiled for."""
        name = self._c.ember_instructions
        name.restype = c_char_p
        return str(name().decode())

    def read(self, data: npt.NDArray[np.uint8]) -> int:
        """The sum of every 64th byte, read by all threads; for measuring memory."""
        reader = self._c.ember_read
        reader.restype = c_int64
        where = checked("data", data, np.uint8, (None,))
        return int(reader(c_void_p(where), c_int64(data.size)))

    def attend(
        self,
        q: Floats,
        keys: Array,
        values: Array,
        *,
        held: int,
        scale: float,
        padding: npt.NDArray[np.int32] | None = None,
    ) -> Floats:
        """Causal attention of q [B, Hq, L, D] to the first `held` tokens.

        keys, values: [B, Hkv, capacity, D], D a multiple of 16, of a dtype in
        ELEMENTS; query i is token held - L + i. padding [B]: hidden leading
        tokens of each row.
        """
        checked("q", q, np.float32, (None, None, None, None))
        batch, heads, queries, dim = q.shape
        kv = keys.shape
        if len(kv) != 4 or kv != values.shape or (kv[0], kv[3]) != (batch, dim):
            raise CacheError(f"got keys {kv} and values {values.shape} for queries {q.shape}")
        if not queries <= held <= kv[2]:
            raise CacheError(f"got {queries} queries, {held} held of {kv[2]} tokens")
        lowest = np.zeros((batch, queries), np.int64)
        if padding is not None:
            checked("padding", padding, np.int32, (batch,))
            # Padding sees padding, so that no row is without tokens.
            real = np.arange(held - queries, held) >= padding[:, None]
            lowest = np.where(real, padding[:, None], 0).astype(np.int64)
        step = structs.TierStep(
            batch=batch,
            queries=queries,
            heads=heads,
            kv_heads=kv[1],
            dim=dim,
            scale=scale,
            lowest=address(lowest),
            lowest_stride=queries,
            total=held,
        )
        ring = structs.Ring(strided(keys), strided(values), kv[2])
        return self.attend_tiers(q, step, structs.TierMemory(hot=ring), None)

    def attend_tiers(
        self,
        q: Floats,
        step: structs.TierStep,
        memory: structs.TierMemory,
        new: tuple[Array, Array] | None,
    ) -> Floats:
        """Attention of q [B, Hq, L, D] to what tiers hold and to new tokens, which stay new.

        memory: of tiers for tokens as `step` has them. new: keys and values
        [B, Hkv, length, D] of a dtype in ELEMENTS; None: there are none.
        """
        heads, kv_heads, dim = step.heads, step.kv_heads, step.dim
        where = checked("q", q, np.float32, (step.batch, heads, step.queries, dim))
        if dim % HEAD_DIM_STEP or 2 * step.pairs > dim:
            raise CacheError(
                f"got heads of {dim} dimensions, expected a multiple of 16, and {step.pairs} pairs"
            )
        if kv_heads < 1 or heads % kv_heads or step.total + step.length < step.queries:
            raise CacheError(
                f"got {heads} heads over {kv_heads} KV heads, {step.queries} queries to "
                f"{step.total} tokens and {step.length} new ones"
            )
        shapes = [tokens.shape for tokens in new or ()]
        if shapes != [(step.batch, kv_heads, step.length, dim)] * (2 if step.length else 0):
            raise CacheError(
                f"got new tokens {shapes}, expected {step.length} of {kv_heads} KV heads"
            )
        keys, values = map(strided, new) if new else (structs.Strided(), structs.Strided())
        out = np.empty(q.shape, np.float32)
        self._c.ember_attend(
            byref(step),
            byref(memory),
            byref(keys),
            byref(values),
            c_void_p(where),
            c_void_p(address(out)),
        )
        return out

    def encode(self, form: structs.BlockForm, tokens: Array, records: Bytes) -> None:
        """Tokens [B, Hkv, N * M, D] to records [N, B, Hkv, bytes]."""
        _check_functions(form)
        where = checked(
            "records", records, np.uint8, (None, None, None, form.record_bytes), written=True
        )
        blocks, batch, heads, _ = records.shape
        if tokens.shape != (batch, heads, blocks * form.tokens, form.dim):
            raise CacheError(f"got tokens {tokens.shape} for records {records.shape}")
        self._c.ember_encode(
            byref(form),
            byref(strided(tokens)),
            *(c_int64(n) for n in (blocks, batch, heads)),
            c_void_p(where),
        )

    def decode(self, form: structs.BlockForm, records: Bytes) -> Floats:
        """Records [N, B, Hkv, bytes] to tokens [B, Hkv, N * M, D]."""
        _check_functions(form)
        where = checked("records", records, np.uint8, (None, None, None, form.record_bytes))
        blocks, batch, heads, _ = records.shape
        out = np.empty((batch, heads, blocks * form.tokens, form.dim), np.float32)
        self._c.ember_decode(
            byref(form),
            c_void_p(where),
            *(c_int64(n) for n in (blocks, batch, heads)),
            c_void_p(address(out)),
        )
        return out

    def pack(self, form: structs.BlockForm, codes: Bytes, records: Bytes) -> None:
        """Write codes [..., M, D] into the first bytes of records [..., bytes]."""
        _check_functions(form)
        outer = records.shape[:-1]
        read = checked("codes", codes, np.uint8, (*outer, form.tokens, form.dim))
        written = checked("records", records, np.uint8, (*outer, form.record_bytes), written=True)
        count = c_int64(records[..., 0].size)
        self._c.ember_pack(byref(form), c_void_p(read), count, c_void_p(written))

    def unpack(self, form: structs.BlockForm, records: Bytes) -> Bytes:
        """The codes [..., M, D] of records [..., bytes]."""
        _check_functions(form)
        outer = records.shape[:-1]
        where = checked("records", records, np.uint8, (*outer, form.record_bytes))
        codes = np.empty((*outer, form.tokens, form.dim), np.uint8)
        count = c_int64(records[..., 0].size)
        self._c.ember_unpack(byref(form), c_void_p(where), count, c_void_p(address(codes)))
        return codes

    def codes(self, words: npt.NDArray[np.uint32], *, bits: int, dim: int) -> Bytes:
        """The codes [..., D] of words [..., W] made by `codecs.packing.pack`, D a multiple of 8."""
        if not 1 <= bits <= 8 or dim % 8 or dim < 1:
            raise CacheError(f"got {dim} codes of {bits} bits, expected a multiple of 8, 1 to 8")
        each = words_per_token(bits, dim)
        where = checked("words", words, np.uint32, (*words.shape[:-1], each))
        codes = np.empty((*words.shape[:-1], dim), np.uint8)
        sizes = (c_int64(n) for n in (codes.size // dim, each, bits, dim))
        self._c.ember_codes(c_void_p(where), *sizes, c_void_p(address(codes)))
        return codes


def _check_functions(form: structs.BlockForm) -> None:
    """Raise CacheError for a form of codes that leads to no functions."""
    if form.family and not (form.coding and form.all_codes):
        raise CacheError("got a form without functions: take the one of `CpuCodec.ready`")


def is_refused() -> bool:
    """Whether this process knows that it cannot have the kernels."""
    tried = _attempt.cache_info().currsize > 0
    return tried and isinstance(_attempt(), NativeUnavailableError)


def library() -> Library:
    """The kernels, compiled on first use. Raises NativeUnavailableError, the same each time."""
    found = _attempt()
    if isinstance(found, NativeUnavailableError):
        raise found
    return found


@cache
def _attempt() -> Library | NativeUnavailableError:
    try:
        return Library(_threads())
    except NativeUnavailableError as error:
        return error


def _threads() -> int:
    """EMBER_THREADS, or one per physical core that this process may use.

    Raises EmberError for what is no number of threads: a typing error would cost speed
    in silence, and too many threads the process.
    """
    if given := os.environ.get("EMBER_THREADS"):
        # More digits than that might not even be a number to Python.
        threads = int(given) if given.isdecimal() and len(given) < 10 else 0
        if not 0 < threads <= _MOST_THREADS:
            raise EmberError(
                f"got EMBER_THREADS={quoted(given)}, expected a whole number, 1 to {_MOST_THREADS}"
            )
        return threads
    if sys.platform != "linux":
        return os.cpu_count() or 1
    return len({_core(cpu) for cpu in os.sched_getaffinity(0)})


def _core(cpu: int) -> str:
    """The physical core of a logical processor: the list of its hardware threads."""
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    try:
        return path.read_text()
    except OSError:
        return str(cpu)
