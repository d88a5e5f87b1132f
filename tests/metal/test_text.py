"""The kernels' text as Metal's and CUDA's compilers would judge it, as far as can be told here."""

import re
from dataclasses import replace

import mlx.core as mx
import pytest

from tests.metal import cuda
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
        made = replace(made, inputs=[made.inputs[0][:4]])
    assert lint(generate(made))


@pytest.mark.parametrize("name", [*CODECS, "two launches", "cold of four segments"])
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
def test_cuda_without_spills(pair: tuple[str, str]) -> None:
    for each in calls_of(Case(keys=pair[0], values=pair[1], group=4, query=mx.float16)):
        resources = cuda.compile_cuda(each)
        assert resources.spilled == 0
        assert resources.stack == 0
        assert resources.shared <= 48 * 1024
        assert resources.registers * each.threadgroup[0] <= 65536


@needs_nvrtc
def test_cuda_of_prefill_without_spills() -> None:
    for each in prefill_calls_of(Case(new=9, one_query=True, query=mx.float16)):
        resources = cuda.compile_cuda(each)
        assert (resources.spilled, resources.stack) == (0, 0)


@needs_nvrtc
@pytest.mark.parametrize("name", ["D64 G8 L1", "D96 G5 L8", "D128 G1 L1", "D128 G8 L1", "bf16"])
def test_cuda_shapes_without_spills(name: str) -> None:
    for each in calls_of(SHAPES[name]):
        resources = cuda.compile_cuda(each)
        assert (resources.spilled, resources.stack) == (0, 0)
