"""The kernels' text as Metal's and CUDA's compilers would judge it, as far as can be told here."""

import re
from collections.abc import Iterable
from dataclasses import replace

import mlx.core as mx
import pytest

from kvcache.gpu.shape import CallShape
from tests.metal import cuda, registers
from tests.metal.build import find_compiler
from tests.metal.cases import ALL, CODECS, PAIRS, SHAPES, TIERS
from tests.metal.generated import generate
from tests.metal.lint import lint
from tests.metal.recording import calls_of, prefill_calls_of
from tests.metal.samples import Case
from tests.metal.test_emulator import call

needs_clang = pytest.mark.skipif(
    find_compiler() is None, reason="needs clang++ 18 or newer on x86-64 Linux"
)
needs_nvrtc = pytest.mark.skipif(
    not cuda.is_available(), reason="needs the dependency group nvrtc (Linux, x86-64)"
)

MOST_BUFFERS = 31  # of a Metal kernel


@needs_clang
@pytest.mark.parametrize("name", ALL)
def test_address_spaces(name: str) -> None:
    for each in calls_of(ALL[name]):
        assert lint(generate(each)) == []


@needs_clang
def test_address_spaces_of_prefill() -> None:
    for pair in PAIRS:
        for each in prefill_calls_of(Case(keys=pair[0], values=pair[1], new=9, one_query=True)):
            assert lint(generate(each)) == []


@needs_clang
@pytest.mark.parametrize(
    ("header", "source"),
    [
        ("inline float first(const device float* p) { return p[0]; }", "out[0] = first(in);"),
        ("", "threadgroup float a[4]; float* p = a; out[0] = p[0];"),
        ("", "out[0] = 1.0 * double(in[0]);"),
        ("", "in[0] = 1;"),
        ("inline float f(int i) { threadgroup float t[4]; return t[i]; }", "out[0] = f(1);"),
        ("", "if (N > 1) { threadgroup float t[4]; out[0] = t[0]; }"),
        ("", "out[0] = std::exp(1.0f);"),
        ("", "int i = in[0]; out[0] = i;"),
    ],
    ids=[
        *("constant as device", "plain pointer to threadgroup", "double", "input written"),
        *("threadgroup in function", "threadgroup in block", "std", "narrowed"),
    ],
)
def test_lint_objects(header: str, source: str) -> None:
    made = call(source, header=header)
    if "first" in header:  # an input this small lies in constant memory
        made = made._replace(inputs=[made.inputs[0][:4]])
    assert lint(generate(made))


@pytest.mark.parametrize("name", [*CODECS, "two launches", "cold of eight segments"])
def test_buffers_fit_metal(name: str) -> None:
    for each in calls_of(CODECS.get(name) or TIERS[name]):
        assert len(each.inputs) + len(each.shapes) <= MOST_BUFFERS


def test_lengths_are_no_constants() -> None:
    """Text and template, what MLX compiles anew for, are those of any other length."""
    short, long = (
        [generate(each) for each in calls_of(TIERS[name])]
        for name in ("cold grows", "cold of many spans")
    )
    assert {each.text for each in short} == {each.text for each in long}
    assert {each.template for each in short} == {each.template for each in long}


def test_every_thread_attribute_is_named_in_the_body() -> None:
    attributes = re.compile(
        r"\b(?:thread|threads|threadgroup|threadgroups|simdgroup|simdgroups)_\w+_in_\w+"
    )
    for each in calls_of(Case()):
        text = each.kernel.headers
        assert not attributes.findall(text), "MLX does not look into headers"


@needs_nvrtc
@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
def test_registers_of_codecs(pair: tuple[str, str]) -> None:
    case = Case(keys=pair[0], values=pair[1], group=4, dim=128, query=mx.float16)
    for _, each in registers.templates([case]):
        assert registers.excess(each)[1] == []


@needs_nvrtc
@pytest.mark.parametrize(
    "name", ["D64 G8 L1", "D80 G3 L2", "D96 G5 L8", "D128 G8 L1", "D128 G1 L1", "bf16", "f32 G8"]
)
def test_registers_of_shapes(name: str) -> None:
    for _, each in registers.templates([SHAPES[name], replace(SHAPES[name], query=mx.float16)]):
        assert registers.excess(each)[1] == []


@needs_nvrtc
def test_what_is_too_large_is_told() -> None:
    """96 numbers that are alive at once, and a loop over them."""
    made = call("""
    float sums[96];
    UNROLL for (int i = 0; i < 96; i++) sums[i] = in[i];
    ROLLED for (int n = 0; n < int(in[0]); n++) {
      UNROLL for (int i = 0; i < 96; i++) sums[i] += sums[(i * 7 + 1) % 96] * in[n];
    }
    UNROLL for (int i = 0; i < 96; i++) out[i] = sums[i];
    """)
    found = cuda.compile_cuda(made)
    assert found.registers > 96
    assert 96 < found.loop < found.instructions
    assert cuda.compile_cuda(made, registers=32).spilled > 0


def test_rows_are_every_way_to_cut_them() -> None:
    def cuts(shapes: Iterable[CallShape]) -> set[tuple[int, ...]]:
        return {(each.dim, each.tile_rows, each.team, each.teams) for each in shapes}

    def shape(group: int, new: int, dim: int) -> CallShape:
        return CallShape(batch=1, kv_heads=1, group=group, new=new, dim=dim)

    eight = range(1, 9)
    assert cuts(shape(rows, 1, dim) for rows in registers.ROWS for dim in registers.DIMS) >= cuts(
        shape(group, new, dim) for group in eight for new in eight for dim in registers.DIMS
    )
