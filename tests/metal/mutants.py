"""Kernels with one mechanical mistake each, to see that the tests' means find it.

A mutant is the shipped text with one operator, constant, reduction or barrier
changed. It is caught when clang refuses it, when a run faults, or when its result
differs; first in a plain run, then in other orders and under the sanitizers. Over a
file's blocks it is also caught when it loads more, or fewer, bytes.
`python -m tests.metal.mutants [FILE ...]` tries all, or those of some files, in as
many processes as there are processors, prints how each is caught, and counts by file;
those known to be harmless stand with their reasons in harmless_mutants.txt.
"""

import argparse
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path

import mlx.core as mx
import numpy as np

from kvcache.gpu import TierDecoder, TierPrefill, kernel
from kvcache.gpu.kernel import SHARED_HEADERS, Call
from models.gguf.tensor_types import TensorType
from models.gpu.blocks import KERNELS
from tests.metal import lookups
from tests.metal.build import Mode, RefusedTextError
from tests.metal.emulator import Emulator, KernelFaultError, Order
from tests.metal.encoding import EncodeCase, unlike
from tests.metal.lookups import LookupCase
from tests.metal.matrices import GRIDS_ON_GPU
from tests.metal.products import ProductCase, columns_of, excess
from tests.metal.samples import Case, Sample, make, tolerance
from tests.reliability.record import Row, add_flag, keep

Tried = Case | EncodeCase | ProductCase | LookupCase
ENCODING = (
    "encode.metal",
    "leaving.h",
    "encoders.h",
    "encode_kvarn.h",
    "encode_trellis.h",
    "encode_feedback.h",
)
DECODERS = ("blocks_32.h", "blocks_256.h", "two_bits.h", "levels.h", "grids.h", "floats.h")
PRODUCTS = ("product.metal", "blocks.h", *DECODERS)
LOOKUPS = ("rows.metal", "numbers.h")
BODIES = (
    "cold.metal",
    "unencoded.metal",
    "merge.metal",
    "expand.metal",
    *ENCODING,
    *PRODUCTS,
    *LOOKUPS,
)
_FILES = (*BODIES, *SHARED_HEADERS)
_HARMLESS = Path(__file__).parent / "harmless_mutants.txt"

_RULES: tuple[tuple[str, str], ...] = (
    *((f" {a} ", f" {b} ") for a, b in ("+-", "-+", "*+", "/*", "%/", "|&", "&|")),
    *((" < ", " <= "), (" <= ", " < "), (" >= ", " > "), (" == ", " != "), (" != ", " == ")),
    *((" && ", " || "), (" || ", " && "), (" >> ", " << "), (" << ", " >> ")),
    *((" += ", " -= "), (" *= ", " += "), ("+= ", "= "), ("min(", "max("), ("max(", "min(")),
    *(("simd_sum(", "("), ("simd_max(", "("), ("simd_any(", "("), ("!", "")),
    *(("simd_shuffle(", "metal::max("), ("of_lane(", "metal::max(")),
    ("simd_shuffle_xor(", "metal::max("),
    *(("threadgroup_barrier(", "simdgroup_barrier("), ("simdgroup_barrier(", "(void)(")),
    *(("threadgroup_barrier(", "(void)("), ("continue;", ";"), ("0.0f", "1.0f"), ("1.0f", "2.0f")),
    *(("true", "false"), ("false", "true")),
)
_NUMBER = re.compile(r"(?<![\w.])(\d+)(?=u?\b(?!\.))")
_SIZE = re.compile(r"threadgroup |\s*\w*STAGED = ")
_STRUCTURE = re.compile(r"^struct (\w+)", re.MULTILINE)

# Two teams of two simdgroups, of which one has no block in the end.
_TEAMS = Case(group=5, new=2, threadgroups=1, blocks=5, evicted=0)
_GENERAL = (
    Case(
        dim=80,
        group=2,
        new=3,
        block=40,
        window_step=41,
        threadgroups=4,
        segments=(1, 1, 2, 4),
        slots=8,
        blocks=8,
        pinned=70,
        ring=161,
        hot=157,
    ),
    Case(
        dim=80,
        values="turbo2u",
        group=5,
        in_tiers=2,
        batch=2,
        pinned=170,
        block=33,
        threadgroups=1,
        ring=161,
        hot_start=150,
        hot=160,
    ),
    Case(in_tiers=5, hot=0, evicted=0, kv_heads=1),
    Case(new=3, blocks=0, hot=0, pinned=140, sharpness=300),
    Case(
        new=2,
        sharpness=50,
        pinned=40,
        segments=(20,),
        slots=20,
        first_slot=3,
        blocks=20,
        ring=400,
        hot=390,
    ),
    Case(
        keys="kvarn4", values="kvarn3", dim=128, group=8, segments=(1, 1, 2, 4), slots=8, blocks=8
    ),
    Case(blocks=0, dtype=mx.bfloat16, query=mx.bfloat16),
    # Turns of some channels, whose pairs lie apart.
    Case(new=2, blocks=0, pairs=5, traditional=False, window_step=9, pinned=40),
    Case(new=3, sharpness=300),
    _TEAMS,
    # A tile and some tokens, and rows of which the last four are not all there.
    Case(block=70, group=6, blocks=2),
    # Tiles that the second query sees in part, or not at all.
    Case(new=2, window_step=70, hot=63),
    Case(keys="kivi4", values="kivi3", dim=88, dtype=mx.float32, kv_heads=3, batch=2, blocks=5),
)
# Rotations of each number of parts, and of each number of registers.
_ROTATED = (
    Case(dim=112, values="turbo4", blocks=2),
    Case(dim=128, values="turbo3u", group=1, blocks=2),
    Case(dim=24, values="turbo3", kv_heads=3, blocks=2),
    Case(dim=80, values="turbo2", blocks=2),
    Case(dim=64, values="turbo3u", batch=2, blocks=2),
    Case(dim=232, group=1, blocks=0),
)
# More spans than lanes; in the second the one after as many outweighs the rest.
_MANY_SPANS = Case(
    group=1, segments=(170,), slots=170, blocks=170, block=4, first_slot=0, kv_heads=1
)
_MERGED = (
    *(*_GENERAL, _MANY_SPANS, replace(_MANY_SPANS, sharpness=300, seed=45)),
    Case(dim=24, blocks=1),
    Case(group=1, kv_heads=1, blocks=0, ring=1300, hot=1290),
)
# Cases in which a codec family is read as keys and as values: with blocks whose words are a
# multiple of four and others, and with blocks of more tokens than the largest tile has.
_BY_STRUCTURE = {
    "TokenAffine": (
        Case(keys="q5", values="h6", dim=80, block=40, threadgroups=1),
        Case(keys="q8", values="h6", dim=80, block=33, group=5),
        Case(keys="q8", values="h8", dim=128, blocks=2),
    ),
    "ChannelAffine": (
        Case(keys="hkivi5", values="kivi3", dim=80, block=40, threadgroups=1),
        Case(keys="kivi2", values="kivi5", dim=96, block=33),
        Case(keys="kivi3", values="kivi4", dim=96, block=31),
        Case(keys="kivi4", values="kivi3", dim=256, group=2, blocks=2),
        Case(keys="kivi3", values="kivi4", dim=80, block=70, blocks=2),
    ),
    "Levels": (
        Case(keys="turbo3", values="turbo3u", dim=80, block=40, threadgroups=1),
        Case(keys="turbo4", values="turbo3", dim=96, block=31, group=7),
        Case(keys="turbo3", values="turbo3u", dim=80, block=70, blocks=2),
    ),
    "Trellis": (
        Case(keys="trellis3", values="trellis3", dim=80, block=40, threadgroups=1),
        Case(keys="trellis4", values="trellis2", dim=96, block=33, group=7),
        Case(keys="trellis2", values="trellis4", dim=40, block=31),
        Case(keys="trellis3", values="trellis3", dim=128, group=1, blocks=2),
        Case(keys="trellis3", values="trellis3", dim=80, block=70, blocks=2),
    ),
    "KVarN": (
        Case(keys="kvarn5", values="kvarn6", dim=80, block=40, threadgroups=1),
        Case(keys="kvarn8", values="kvarn5", dim=96, block=33),
        Case(keys="kvarn8", values="kvarn8", dim=128, blocks=2),
    ),
    "Unencoded": (
        Case(keys="f16", values="f16", dim=80, block=40, threadgroups=1),
        Case(keys="f16", values="f16", dim=80, block=70, blocks=2),
    ),
}

_PREFILL = tuple(
    replace(case, one_query=True)
    for case in (
        *(_GENERAL[0], _GENERAL[-1]),
        *(*_BY_STRUCTURE["KVarN"], *_BY_STRUCTURE["Levels"], *_BY_STRUCTURE["TokenAffine"]),
    )
)
_BY_FILE = {"expand.metal": _PREFILL, "hadamard.h": _ROTATED, "merge.metal": _MERGED}
# Seconds after which a mutant has no end, as the kernels themselves take a fraction of one.
_SECONDS = 4
# Bytes with which prefill takes the three heads of the last general case in two steps.
_MOST_TRANSIENT = 2_200_000

_ENCODING = (
    EncodeCase(keys="turbo3u", values="kivi4", dim=128, block=65, batch=1, blocks=1, held=65),
    EncodeCase(dim=80, block=40, blocks=3, held=50),
    EncodeCase(dim=128, block=40, kv_heads=1, batch=1, older=3, blocks=1, dtype=mx.float32),
    EncodeCase(dim=16, block=3, times=0),
    EncodeCase(dim=16, block=3, times=1e-3, dtype=mx.float32),
    EncodeCase(dim=16, block=20, times=3e36, dtype=mx.float32),
    EncodeCase(values="h4", dim=256, block=20, kv_heads=1, batch=1),
    EncodeCase(keys="turbo2", values="hkivi4", dim=192, block=9, kv_heads=1, batch=1, blocks=1),
)
_ENCODING_LEVELS = (
    EncodeCase(keys="turbo3u", values="turbo4", dim=80, block=40, batch=1),
    EncodeCase(keys="turbo2", values="turbo2u", dim=16, block=3, times=0),
    EncodeCase(keys="turbo3u", values="turbo4u", dim=16, block=35, times=1e-3, dtype=mx.float32),
)
_ENCODING_BY_STRUCTURE = {
    "TokenAffineEncoder": (
        EncodeCase(keys="q5", values="h6", dim=80, block=40, batch=1),
        EncodeCase(keys="h3", values="q8", dim=128, block=33, batch=1, times=1e4, dtype=mx.float32),
        EncodeCase(keys="h3", values="q2", dim=16, block=3, times=0),
    ),
    "ChannelAffineEncoder": (
        EncodeCase(keys="hkivi5", values="kivi3", dim=80, block=40, batch=1),
        EncodeCase(keys="hkivi2", values="kivi4", dim=128, block=70, batch=1, blocks=1),
        EncodeCase(keys="hkivi2", values="kivi4", dim=16, block=3, times=0),
    ),
    "Nearest": _ENCODING_LEVELS,
    "LevelsEncoder": _ENCODING_LEVELS,
    "FeedbackEncoder": (
        EncodeCase(keys="hkivi4", dim=40, block=35, batch=1, blocks=1, feedback=True),
        EncodeCase(keys="hkivi2", dim=80, block=68, kv_heads=1, batch=1, blocks=1, feedback=True),
        EncodeCase(keys="kivi3", dim=16, block=36, batch=1, blocks=1, feedback=True),
        EncodeCase(keys="kivi4", dim=256, block=33, kv_heads=1, batch=1, blocks=1, feedback=True),
        EncodeCase(keys="kivi3", dim=16, block=3, times=0, feedback=True),
    ),
    "TrellisEncoder": (
        EncodeCase(keys="trellis3", values="trellis4", dim=80, block=9, batch=1, blocks=1),
        EncodeCase(keys="trellis2", values="trellis3", dim=16, block=35, kv_heads=1, batch=1),
        EncodeCase(keys="trellis3", values="trellis4", dim=16, block=3, times=0, blocks=1),
        # Channels that fill their steps, and more words than threads.
        EncodeCase(
            keys="trellis2", values="trellis4", dim=128, block=33, kv_heads=1, batch=1, blocks=1
        ),
    ),
    "UnencodedEncoder": (EncodeCase(keys="f16", values="f16", dim=16, block=40),),
    "KVarNEncoder": (
        EncodeCase(keys="kvarn4", values="kvarn2", dim=80, block=40, batch=1),
        EncodeCase(keys="kvarn3", values="kvarn8", dim=128, block=66, batch=1, blocks=1),
        EncodeCase(keys="kvarn3", values="kvarn8", dim=16, block=3, times=0),
        *(
            EncodeCase(keys=key, values="kvarn8", dim=16, block=n, times=x, dtype=mx.float32)
            for key, n, x in (("kvarn3", 5, 1e12), ("kvarn2", 200, 1e-25))
        ),
    ),
}


def _products(*kinds: TensorType) -> tuple[ProductCase, ...]:
    """Of each type a step and a part of one, once with one row of x and once with several."""
    return tuple(
        ProductCase(
            kind=kind, columns=columns_of(kind, columns), rows=rows, last=rows, inputs=inputs
        )
        for kind in kinds
        for rows, columns, inputs in ((5, 2336, 1), (3, 1056, 3))
    )


# Where a lane has nothing to load, what a word is by chance is no small number.
_HALVES = ProductCase(kind=TensorType.F16, columns=520, dtype=mx.float16)
_PRODUCTS = (
    # Simdgroups that share what they stage, of which two have one row or none.
    ProductCase(rows=19, last=19, columns=1280, inputs=3, biased=True),
    ProductCase(rows=13, first=4, last=9, biased=True, dtype=mx.float16),
    ProductCase(rows=33, last=33, columns=256, inputs=8),
    ProductCase(rows=33, last=33, columns=2304, inputs=2, dtype=mx.bfloat16),
    *(ProductCase(kind=TensorType.F32, rows=7, last=7, columns=520, inputs=n) for n in (1, 7)),
    ProductCase(kind=TensorType.F32, rows=7, last=7, columns=520, inputs=2, dtype=mx.float16),
    _HALVES,
)
_PRODUCTS_BY_STRUCTURE = {
    "Nibbles32": _products(TensorType.Q5_1, TensorType.Q5_0, TensorType.Q4_1, TensorType.Q4_0),
    "Levels32": _products(TensorType.IQ4_NL, TensorType.MXFP4),
    "Nibbles256": _products(TensorType.Q5_K, TensorType.Q4_K),
    "Numbers": (
        *_products(TensorType.BF16, TensorType.F32),
        ProductCase(kind=TensorType.F16, columns=37, inputs=3),
    ),
    **{
        kind.name: _products(kind)
        for kind in (
            *(TensorType.Q8_0, TensorType.Q6_K, TensorType.IQ4_XS),
            *(TensorType.Q2_K, TensorType.Q3_K, *GRIDS_ON_GPU),
        )
    },
}


_LOOKUPS = (
    LookupCase(),
    LookupCase(columns=1024, rows=9, last=9),
    LookupCase(kind=TensorType.Q2_K, columns=4352, first=2, dtype=mx.float16),
    LookupCase(kind=TensorType.Q8_0, columns=1056, dtype=mx.bfloat16, rows=1, last=1),
    LookupCase(ids=(-1, 7, 1 << 30, -(1 << 31), 3, 0, 6, 7, 8), first=1, last=5, factor=-3.5),
    LookupCase(kind=TensorType.Q6_K, ids=(2,), columns=256, dtype=mx.float16, factor=0.5),
)

# Types that use what all share in each way that there is.
_EACH_WAY = (
    *(TensorType.Q3_K, TensorType.Q6_K, TensorType.Q5_1, TensorType.Q2_K, TensorType.MXFP4),
    *(TensorType.IQ2_S, TensorType.F16, TensorType.F32),
)
# Of what stands before the first structure of a file.
_BEFORE_STRUCTURES = {
    "grids.h": _products(*GRIDS_ON_GPU),
    "levels.h": _products(TensorType.MXFP4, TensorType.IQ4_XS),
}


def text_of(file: str) -> str:
    """A kernel's text, or a header's."""
    return kernel.text_of(file, KERNELS)


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A change in a file of `kernels/`: the text at `start` becomes `new`."""

    file: str
    start: int
    old: str
    new: str

    @property
    def text(self) -> str:
        """The whole file, changed."""
        whole = text_of(self.file)
        return whole[: self.start] + self.new + whole[self.start + len(self.old) :]

    @property
    def line(self) -> str:
        """The changed line, with the change marked, as the list of harmless mutants names it."""
        whole = text_of(self.file)
        begin = whole.rfind("\n", 0, self.start) + 1
        end = whole.index("\n", self.start)
        before, after = whole[begin : self.start], whole[self.start + len(self.old) : end]
        return f"{self.file}: {before.lstrip()}[{self.old.strip()} -> {self.new.strip()}]{after}"

    def cases(self) -> Sequence[Tried]:
        """What to try it with: the family that it is in, or everything."""
        if self.file in _BY_FILE:
            return _BY_FILE[self.file]
        structures = [
            m[1] for m in _STRUCTURE.finditer(text_of(self.file)) if m.start() < self.start
        ]
        if self.file == "product.metal":
            return _PRODUCTS
        if self.file in LOOKUPS:
            return _LOOKUPS
        if self.file == "blocks.h":
            return (*_products(*_EACH_WAY), _HALVES)
        if self.file in DECODERS:
            of_one = [each for each in structures if each in _PRODUCTS_BY_STRUCTURE]
            return _PRODUCTS_BY_STRUCTURE[of_one[-1]] if of_one else _BEFORE_STRUCTURES[self.file]
        if self.file in ENCODING:
            known = [each for each in structures if each in _ENCODING_BY_STRUCTURE]
            return _ENCODING_BY_STRUCTURE[known[-1]] if known else _ENCODING
        families = [each for each in structures if each in _BY_STRUCTURE]
        if self.file == "codecs.h" and families:
            return _BY_STRUCTURE[families[-1]]
        others = [case for cases in _BY_STRUCTURE.values() for case in cases]
        return (*_GENERAL, *others) if self.file in (*SHARED_HEADERS, "cold.metal") else _GENERAL


# What runs the kernels that a mutant does not change: inside this process, compiled once.
_UNCHANGED = Emulator()
# Of these it takes macros alone, and no mutant is in one.
_UNREAD_BY_MERGE = ("softmax.h", "packing.h")


@dataclass(frozen=True, kw_only=True)
class MutantLauncher:
    """Runs calls with the mutant's text in place of the file's."""

    mutant: Mutant
    emulator: Emulator

    def __call__(self, call: Call) -> list[mx.array]:
        """The outputs of the changed kernel, or kernels where it is in a header."""
        stem = Path(self.mutant.file).stem
        old = text_of(self.mutant.file)
        unread = call.kernel.stem == "merge" and self.mutant.file in _UNREAD_BY_MERGE
        if (unread or old not in call.kernel.headers) and call.kernel.stem != stem:
            return _UNCHANGED(call)
        kernel = replace(
            call.kernel,
            source=call.kernel.source.replace(old, self.mutant.text),
            headers=call.kernel.headers.replace(old, self.mutant.text),
        )
        return self.emulator(call._replace(kernel=kernel))


def mutants() -> list[Mutant]:
    """All of them, in the order of the text."""
    found = [each for file in _FILES for each in _mutants_of(file)]
    return sorted(set(found), key=lambda each: (each.file, each.start, each.new))


def _mutants_of(file: str) -> Iterator[Mutant]:
    offset, numbers = 0, False
    for line in text_of(file).splitlines(keepends=True):
        code = line.partition("//")[0]
        inside = code.lstrip().startswith("enum {") or numbers
        numbers = inside and "}" not in code
        skipped = inside and not _SIZE.match(code)
        if not skipped and not code.lstrip().startswith(("#", "template", "const device", "enum")):
            for old, new in _RULES:
                for match in re.finditer(re.escape(old), code):
                    yield Mutant(file=file, start=offset + match.start(), old=old, new=new)
            # An array one too large harms nothing, one too small does.
            step = -1 if _SIZE.match(code) else 1
            for match in _NUMBER.finditer(code):
                new = str(int(match[1]) + step)
                yield Mutant(file=file, start=offset + match.start(), old=match[1], new=new)
        offset += len(line)


def caught(mutant: Mutant) -> str | None:
    """How a mutant is found out, or None if it survives."""
    cases = mutant.cases()
    apart = Emulator(mode=Mode.APART, seconds=_SECONDS)
    tries = [(case, apart) for case in cases]
    # Simdgroups that wait for each other, in other orders.
    shuffled = [cases[0], *(case for case in cases if case is _TEAMS)]
    tries += [
        (case, replace(apart, order=Order.RANDOM, seed=seed))
        for seed in range(3)
        for case in shuffled
    ]
    memory = Emulator(mode=Mode.MEMORY, order=Order.BACKWARD, seconds=_SECONDS)
    tries += [(case, memory) for case in cases]
    tries += [(case, Emulator(mode=Mode.RACES, order=Order.RANDOM)) for case in shuffled]
    products = [case for case in cases if isinstance(case, ProductCase)]
    tries += [(case, Emulator(mode=Mode.COUNTING)) for case in products]
    for case, emulator in tries:
        if how := _found_by(MutantLauncher(mutant=mutant, emulator=emulator), case):
            return how
    return None


def _found_by(launch: MutantLauncher, case: Tried) -> str | None:
    try:
        match case:
            case EncodeCase():
                right = not unlike(case, launch)
            case ProductCase():
                right = bool(excess(case, launch).max() < 1)
                if launch.emulator.mode is Mode.COUNTING and launch.emulator.loads != _loads(case):
                    return "COUNTING: other bytes are loaded"
            case LookupCase():
                right = bool(lookups.excess(case, launch).max() <= 1)
            case _:
                right = _attends(launch, case)
    except RefusedTextError:
        return "refused by the compiler"
    except KernelFaultError as error:
        return f"{launch.emulator.mode.name}: {str(error).strip().splitlines()[0][:80]}"
    return None if right else f"{launch.emulator.mode.name}: wrong result"


def _attends(launch: MutantLauncher, case: Case) -> bool:
    sample = _sample(case)
    held, sight, scale = sample.held, sample.sight, sample.scale
    if case.one_query:
        prefill = TierPrefill(launch=launch, most_transient=_MOST_TRANSIENT)
        out = prefill.attend(sample.q, held, sight, scale=scale)
    else:
        out = TierDecoder(launch=launch, threadgroups=case.threadgroups).attend(
            sample.q, held, sight, scale=scale
        )
    got = np.array(out.astype(mx.float32))
    return np.allclose(got, sample.expected, rtol=0, atol=tolerance(case))


@cache
def _loads(case: ProductCase) -> dict[tuple[str, str], int]:
    """Bytes that the text itself loads."""
    emulator = Emulator(mode=Mode.COUNTING)
    excess(case, emulator)
    return emulator.loads


@cache
def _sample(case: Case) -> Sample:
    return make(case)


def harmless() -> dict[str, str]:
    """Reasons by `Mutant.line`."""
    lines = _HARMLESS.read_text(encoding="utf-8").splitlines()
    pairs = [line.split("  # ", 1) for line in lines if line and not line.startswith("#")]
    return {name.strip(): reason for name, reason in pairs}


def main() -> int:
    """Try all mutants, or those of some files; 1 if one survives without a reason."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("files", nargs="*", metavar="FILE", help=f"{', '.join(_FILES)} (all)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, metavar="N")
    add_flag(parser)
    arguments = parser.parse_args()
    if unknown := set(arguments.files) - set(_FILES):
        parser.error(f"no file {min(unknown)}: there are {', '.join(_FILES)}")
    known, faults = harmless(), 0
    # Forked ones would hold MLX's threads half.
    with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool:
        tried = [
            (each, pool.submit(caught, each))
            for each in mutants()
            if each.file in (arguments.files or _FILES)
        ]
        for file, of_file in groupby(tried, lambda pair: pair[0].file):
            began, ends = time.monotonic(), Counter[str]()
            for mutant, found in of_file:
                how = found.result()
                survived = "harmless" if mutant.line in known else "survived without a reason"
                ends["caught" if how else survived] += 1
                print(how or f"SURVIVED {known.get(mutant.line, '')}", mutant.line, flush=True)
            row = _row(file, ends, time.monotonic() - began)
            print(f"{file}: {row.detail}, {row.faults} survived without a reason", flush=True)
            keep(arguments.record, row)
            faults += row.faults
    return int(faults > 0)


def _row(file: str, ends: Counter[str], seconds: float) -> Row:
    return Row(
        program="mutants",
        what=file,
        count=ends.total(),
        unit="mutants",
        faults=ends["survived without a reason"],
        detail=f"{ends['caught']} caught, {ends['harmless']} harmless",
        command=f"python -m tests.metal.mutants {file}",
        seconds=seconds,
    )


if __name__ == "__main__":
    sys.exit(main())
