"""Registers and machine code of the kernels, as NVIDIA's compiler allots them to each template.

Apple's compiler is not at hand; both keep the same values alive. `python -m
tests.metal.registers` counts every template that attention of a decoded token or
products over a file's blocks reach, and says which are too large: some minutes. CI
counts a sample.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace

import mlx.core as mx

from kvcache.gpu.kernel import LEAST_SIZE, Call
from models.gguf.tensor_types import TensorType
from models.gpu.product import product
from models.gpu.rows import decoded, look_up
from tests.metal.cases import PAIRS
from tests.metal.cuda import Resources, compile_cuda
from tests.metal.matrices import ON_GPU, held, rows_of
from tests.metal.recording import Recorder, calls_of, prefill_calls_of
from tests.metal.samples import Case

MOST_REGISTERS = 128  # 32 bits each, of a thread on Apple7 and 8 (M1, M2)
MOST_INSTRUCTIONS = 4000
# M1 caches 12 KB of instructions, which take up to ten bytes each. Some 350 of the loop are for the
# few tiles that raise the tops of the softmax or that some rows do not see whole.
MOST_IN_LOOP = 1550
ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 14, 16)  # one of each way to cut the rows of G and L up to 8
DIMS = (64, 80, 96, 128)


def cases() -> Iterator[Case]:
    """Every head dimension and cut of the rows with the default codecs; others with some."""
    for dim in DIMS:
        for rows in ROWS:
            yield Case(dim=dim, group=rows, query=mx.float16)
    for rows in ROWS:
        yield Case(dim=256, group=rows, query=mx.float16)
        for dim in (*DIMS, 256):
            yield Case(dim=dim, group=rows, blocks=0, query=mx.float16, dtype=mx.float32)
    for keys, values in PAIRS:
        for dim in DIMS:
            for rows in (1, 4, 8):
                yield Case(keys=keys, values=values, dim=dim, group=rows, query=mx.float16)


def templates(chosen: Iterable[Case]) -> Iterator[tuple[Case, Call]]:
    """The calls of the cases, each text with the same constants once."""
    seen = set()
    for case in chosen:
        prompt = replace(case, new=9, group=1, one_query=True)
        for call in (*calls_of(case), *prefill_calls_of(prompt)):
            key = call.kernel.name, tuple(sorted((k, str(v)) for k, v in call.constants.items()))
            if key not in seen:
                seen.add(key)
                yield case, call


def matrix_calls(kind: TensorType) -> list[Call]:
    """Every template over blocks of a type: products with a bias, rows in order and by ids."""
    recorder, columns = Recorder(), 256
    blocks = held(kind, rows_of(kind, rows=LEAST_SIZE, columns=columns))
    for dtype in (mx.float16, mx.bfloat16, mx.float32):
        for inputs in (1, 2, 4, 8):
            x, bias = mx.zeros((inputs, columns), dtype), mx.zeros(LEAST_SIZE, dtype)
            product(recorder, blocks, x, bias)
        decoded(recorder, blocks, dtype)
        look_up(recorder, blocks, mx.zeros(1, mx.int32), dtype)
    return recorder.calls


def named() -> Iterator[tuple[str, Call]]:
    """Every template and what it is of."""
    for case, call in templates(cases()):
        rows = call.constants.get("ROWS", "-")
        team = f"{call.constants.get('TEAM', '-')}x{call.constants.get('TEAMS', '-')}"
        yield (
            f"{call.kernel.stem} {case.keys}/{case.values} D{case.dim} rows {rows} team {team}",
            call,
        )
    for kind in ON_GPU:
        for call in matrix_calls(kind):
            dtype = str(call.dtypes[0]).removeprefix("mlx.core.")
            of = {"product": "rows of x {INPUTS}", "rows": "by id {BY_ID:d}"}[call.kernel.stem]
            yield f"{call.kernel.stem} {kind.name} {dtype} {of.format(**call.constants)}", call


def excess(call: Call) -> tuple[Resources, list[str]]:
    """What the compiler needed with as many registers as M1 has, and what of it is too much."""
    found = compile_cuda(call, registers=MOST_REGISTERS)
    most = {
        "spilled": (found.spilled, 0),
        "stack": (found.stack, 0),
        "instructions": (found.instructions, MOST_INSTRUCTIONS),
        "loop": (found.loop, MOST_IN_LOOP),
        "shared": (found.shared, 32 * 1024),
    }
    return found, [f"{name} {got} > {limit}" for name, (got, limit) in most.items() if got > limit]


def main() -> int:
    """Count all; 1 if one is too large."""
    wrong = 0
    for name, call in named():
        found, reasons = excess(call)
        print(
            f"{name:<56} {found.registers:>3} registers {found.instructions:>5} instructions "
            f"{found.loop:>5} in a loop {found.shared:>6} bytes {' '.join(reasons)}",
            flush=True,
        )
        wrong += bool(reasons)
    print(f"{wrong} too large")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
