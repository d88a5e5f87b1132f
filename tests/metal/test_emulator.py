"""The emulator itself: what it computes is right, and what a GPU would punish is caught."""

import mlx.core as mx
import numpy as np
import pytest

from kvcache.gpu.kernel import Call, Kernel
from tests.metal.build import Mode, find_compiler
from tests.metal.emulator import Emulator, KernelFaultError, Order

pytestmark = pytest.mark.skipif(
    find_compiler() is None, reason="needs clang++ 18 or newer on x86-64 Linux"
)

BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"
# Each thread gives its number to the one opposite: threads 0..63 in, 63..0 out.
REVERSE = f"""
const uint i = thread_index_in_threadgroup;
threadgroup float shared[64];
shared[i] = in[threadgroup_position_in_grid.x * 64u + i];
{BARRIER}
out[threadgroup_position_in_grid.x * 64u + i] = shared[63u - i];
"""
# The sum of each simdgroup, to all of its lanes.
SUM = """
// thread_index_in_simdgroup
const uint i = thread_position_in_grid.x;
out[i] = simd_sum(in[i]);
"""


def call(source: str, *, header: str = "", threads: int = 64, groups: int = 2) -> Call:
    """A call of one input and one output, a float for each thread."""
    count = threads * groups
    return Call(
        kernel=Kernel(stem="toy", source=source, headers=header, inputs=("in",), outputs=("out",)),
        inputs=[mx.arange(count, dtype=mx.float32)],
        constants={"N": 3},
        grid=(count, 1, 1),
        threadgroup=(threads, 1, 1),
        shapes=[(count,)],
        dtypes=[mx.float32],
    )


def run(source: str, emulator: Emulator, **sizes: int) -> list[float]:
    (out,) = emulator(call(source, **sizes))
    return list(np.array(out))


def reversed_groups() -> list[float]:
    return [*range(63, -1, -1), *range(127, 63, -1)]


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("order", Order)
def test_threadgroup_memory_and_barriers(mode: Mode, order: Order) -> None:
    assert run(REVERSE, Emulator(mode=mode, order=order)) == reversed_groups()


@pytest.mark.parametrize("order", Order)
def test_simdgroups(order: Order) -> None:
    sums = [sum(range(first, first + 32)) for first in range(0, 128, 32)]
    assert run(SUM, Emulator(order=order)) == [each for each in sums for _ in range(32)]


def test_shuffle_and_constants() -> None:
    source = "out[thread_position_in_grid.x] = N + simd_shuffle(in[thread_position_in_grid.x], 5);"
    assert run(source, Emulator(), threads=32, groups=1) == [8] * 32


def test_vectors_and_halves() -> None:
    source = """
    const uint i = thread_position_in_grid.x;
    const float4 four = *(const device float4*)(in + i / 4u * 4u);
    const half2 pair = as_type<half2>(0x3c00c000u);
    out[i] = i % 2u ? four.w : float(pair.x) + 10.0f * float(pair.y);
    """
    assert run(source, Emulator(), threads=32, groups=1) == [
        i // 4 * 4 + 3 if i % 2 else 8 for i in range(32)
    ]


def test_what_is_not_written_is_nan() -> None:
    out = run("if (thread_position_in_grid.x > 0u) out[thread_position_in_grid.x] = 1;", Emulator())
    assert np.isnan(out[0])
    assert out[1:] == [1] * 127


def test_loads_are_counted() -> None:
    emulator = Emulator(mode=Mode.COUNTING)
    run(REVERSE, emulator)
    assert emulator.loads == {("toy", "in"): 128 * 4}


@pytest.mark.parametrize(
    ("bug", "source", "told"),
    [
        (
            "barrier that half of a simdgroup misses",
            REVERSE.replace(BARRIER, f"if (i % 2u) {BARRIER}"),
            "divergent",
        ),
        (
            "barrier that a simdgroup misses",
            REVERSE.replace(BARRIER, f"if (i < 32u) {BARRIER}"),
            "divergent barrier",
        ),
        (
            "two barriers",
            f"if (thread_position_in_grid.x % 3u) {BARRIER} else {BARRIER}",
            "diver",
        ),
        ("reduction of some lanes", SUM.replace("simd_sum", "i % 3u ? 0 : simd_sum"), "divergent"),
    ],
    ids=lambda text: text[:24],
)
def test_divergence_is_a_fault(bug: str, source: str, told: str) -> None:
    assert bug
    with pytest.raises(KernelFaultError, match=told):
        run(source, Emulator())


@pytest.mark.parametrize(
    "source",
    [
        REVERSE.replace("shared[63u - i]", "shared[64u - i]"),
        REVERSE.replace("float shared[64]", "float shared[60]"),
        REVERSE.replace("64u + i]", "65u + i]"),
        "out[thread_position_in_grid.x] = float(1 << (int(in[0]) + 31 + N));",
        """const uint2 two = *(const device uint2*)(in + 1);
        out[thread_position_in_grid.x] = as_type<float>(two.x);""",
    ],
    ids=["past the end", "array too small", "past the buffer", "shift past 31", "misaligned"],
)
def test_memory_mode_stops_at(source: str) -> None:
    with pytest.raises(KernelFaultError, match=r"AddressSanitizer|runtime error"):
        run(source, Emulator(mode=Mode.MEMORY))


@pytest.mark.parametrize(
    "source",
    [
        REVERSE.replace(BARRIER, ""),
        REVERSE.replace(BARRIER, "simdgroup_barrier(mem_flags::mem_threadgroup);"),
        REVERSE + "shared[i] = 0;",
        "out[thread_position_in_threadgroup.x] = 1;",
        # A reduction holds lanes together but orders no memory.
        REVERSE.replace(BARRIER, "simd_sum(in[i]);").replace("63u - i", "i ^ 1u"),
    ],
    ids=["no barrier", "weak barrier", "written after", "two groups one place", "sum for barrier"],
)
def test_races_mode_stops_at(source: str) -> None:
    with pytest.raises(KernelFaultError, match="data race"):
        run(source, Emulator(mode=Mode.RACES))


def test_a_missing_barrier_shows_in_the_result() -> None:
    source = REVERSE.replace(BARRIER, "")
    wrong = [run(source, Emulator(order=order)) for order in (Order.FORWARD, Order.BACKWARD)]
    assert all(out != reversed_groups() for out in wrong)


def test_uninitialised_shared_memory_is_nan() -> None:
    source = REVERSE.replace("shared[i] =", "if (i != 7u) shared[i] =")
    assert np.isnan(run(source, Emulator())[56])


@pytest.mark.parametrize(
    ("source", "sizes"),
    [("out[0] = 1;", {"threads": 1056, "groups": 1}), ("threadgroup float a[8193]; a[0] = 1;", {})],
    ids=["threads", "threadgroup memory"],
)
def test_limits_of_metal(source: str, sizes: dict[str, int]) -> None:
    with pytest.raises(KernelFaultError, match="over Metal's limits"):
        run("// thread_position_in_grid\n" + source, Emulator(), **sizes)
