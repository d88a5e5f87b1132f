"""The encoding kernel's own text, executed here: the very bits of the codecs' MLX operations."""

from dataclasses import replace
from itertools import cycle
from math import prod

import mlx.core as mx
import numpy as np
import pytest

from kvcache import CacheError, TwoTierKVCache, codec
from kvcache.codecs import NAMES
from kvcache.codecs.affine import ChannelAffineCodec
from kvcache.gpu import TierDecoder, TierEncoder
from kvcache.gpu.encode import Leaving, encodes
from kvcache.gpu.kernel import Call, Dialect, Launcher
from kvcache.snapshot import Tokens
from kvcache.tiers.gpu import GpuTiers
from kvcache.tiers.ledger import TierSizes
from tests.kvcache.test_two_tier import make_plan
from tests.metal import cuda
from tests.metal.build import Mode, find_compiler
from tests.metal.cases import PAIRS, UNREAD
from tests.metal.emulator import Emulator, Order
from tests.metal.encoding import (
    EncodeCase,
    composed,
    differing,
    drawn,
    encoded,
    is_rounding,
    shares,
    unlike,
)
from tests.metal.generated import generate
from tests.metal.launches import launching
from tests.metal.lint import lint
from tests.metal.ptx import Program, Thread
from tests.metal.recording import Recorder, zeros

needs_clang = pytest.mark.skipif(
    find_compiler() is None, reason="needs clang++ 18 or newer on x86-64 Linux"
)
needs_nvrtc = pytest.mark.skipif(
    not cuda.is_available(), reason="needs the dependency group nvrtc (Linux, x86-64)"
)

MOST_REGISTERS = 128  # of a thread on M1 and M2
MOST_SHARED = 32 * 1024  # bytes of a threadgroup on Metal
DIMS = (64, 80, 96, 128)

WRITTEN = [name for name in NAMES if name not in UNREAD]
CODECS = {
    f"{keys}/{values}": EncodeCase(keys=keys, values=values, dim=DIMS[i % 4], block=block)
    for i, (keys, values, block) in enumerate(
        zip(WRITTEN[::2], [*WRITTEN[1::2], "q3"], cycle((64, 40, 33)), strict=False)
    )
}
SHAPES = {
    f"D{dim} M{block}": EncodeCase(dim=dim, block=block)
    for dim in (8, 16, 24, 40, 56, *DIMS, 112)
    for block in (64,)
} | {
    f"{keys}/{values} M{block}": EncodeCase(keys=keys, values=values, dim=dim, block=block)
    for keys, values in (
        *(
            ("hkivi4", "turbo4u"),
            ("hkivi5", "turbo3u"),
            ("kvarn3", "q6"),
            ("turbo2", "kivi4"),
            ("f16", "trellis3"),
        ),
    )
    for dim, block in ((64, 1), (128, 20), (96, 96), (80, 130))
}
# More channels than six simdgroups have threads, or than a token of a tile of 32 has room for.
WIDE = {
    f"{keys}/{values} D{dim} M{block}": EncodeCase(
        keys=keys, values=values, dim=dim, block=block, kv_heads=2, batch=1, held=held
    )
    for keys, values, dim, block, held in (
        *(("hkivi5", "turbo3u", 256, 64, 50), ("kvarn4", "q4", 256, 40, 0)),
        *(("turbo3", "turbo4u", 256, 16, 16), ("f16", "h8", 256, 33, 0)),
        *(("trellis4", "trellis2", 256, 20, 0), ("trellis3", "hkivi4", 8, 40, 0)),
        *(("hkivi5", "turbo3u", 224, 33, 0), ("kivi4", "kivi2", 208, 20, 0)),
        *(
            ("kivi4", "kvarn3", 192, 64, 0),
            ("h4", "turbo2u", 192, 40, 7),
            ("h3", "f16", 160, 35, 0),
        ),
    )
}
FEEDBACK = {
    f"{keys}/{values} D{dim} M{block} fed": EncodeCase(
        keys=keys, values=values, dim=dim, block=block, held=held, batch=1, feedback=True
    )
    for keys, values, dim, block, held in (
        *(("hkivi5", "turbo3u", 64, 64, 64), ("hkivi4", "turbo4u", 128, 64, 50)),
        *(("hkivi3", "q4", 80, 40, 79), ("kivi4", "kvarn3", 64, 33, 1)),
        *(("hkivi2", "trellis3", 96, 20, 0), ("hkivi5", "kivi2", 256, 64, 0)),
        *(("hkivi4", "hkivi4", 64, 128, 70), ("kivi5", "f16", 8, 1, 0)),
        *(("hkivi5", "turbo3u", 16, 200, 130), ("hkivi3", "h4", 112, 9, 5)),
    )
} | {
    f"fed, {name}": EncodeCase(keys="hkivi4", dim=40, block=20, feedback=True, **numbers)
    for name, numbers in {
        "zeros": {"times": 0},
        "tiny": {"times": 1e-9, "dtype": mx.float32},
        "past half": {"times": 1e7, "dtype": mx.float32},
        "the largest": {"times": 3e36, "dtype": mx.float32},
        "bf16, of one head": {"dtype": mx.bfloat16, "kv_heads": 1, "batch": 3},
    }.items()
}
PLACES = {
    "in the ring": EncodeCase(held=128),
    "in the ring, of one block": EncodeCase(held=64, blocks=1, batch=1, start=200),
    "most in the ring": EncodeCase(held=127),
    "one in the ring": EncodeCase(held=1),
    "after others": EncodeCase(older=17),
    "of one head": EncodeCase(kv_heads=1, batch=1, blocks=5),
}
NUMBERS = {
    "bf16": EncodeCase(dtype=mx.bfloat16),
    "f32": EncodeCase(dtype=mx.float32),
    "bf16, the largest": EncodeCase(dtype=mx.bfloat16, times=3e36, dim=40, block=20, batch=1),
    "large": EncodeCase(times=300),
    **{
        f"{keys}/{values}, the largest": EncodeCase(
            keys=keys, values=values, times=3e36, dtype=mx.float32, dim=80, block=20, batch=1
        )
        for keys, values in (("kivi4", "turbo4u"), ("kvarn4", "trellis3"), ("h4", "turbo3"))
    },
    "small": EncodeCase(times=1e-4),
    "tiny": EncodeCase(times=1e-9, dtype=mx.float32),
    "past half": EncodeCase(times=1e7, dtype=mx.float32),
    "zeros": EncodeCase(times=0),
    **{
        f"{times:g} {keys}/{values}": EncodeCase(
            keys=keys, values=values, times=times, dtype=mx.float32, dim=80, block=20
        )
        for times in (0, 1e-9, 1e7)
        for keys, values in (("kvarn4", "h3"), ("turbo3", "f16"))
    },
}
ALL = CODECS | SHAPES | WIDE | FEEDBACK | PLACES | NUMBERS
DEFAULT = EncodeCase()


def check(case: EncodeCase, launch: Launcher) -> None:
    assert unlike(case, launch) == []


def call_of(case: EncodeCase) -> Call:
    recorder = Recorder()
    encoded(case, recorder)
    (call,) = recorder.calls
    return call


@needs_clang
@pytest.mark.parametrize("name", ALL)
def test_bits_are_the_codecs(name: str) -> None:
    check(ALL[name], Emulator())


@needs_clang
@pytest.mark.parametrize("order", [Order.BACKWARD, Order.RANDOM])
@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
def test_in_any_order_as_cuda(pair: tuple[str, str], order: Order) -> None:
    case = EncodeCase(keys=pair[0], values=pair[1], dim=80, block=40, held=50)
    check(case, Emulator(dialect=Dialect.CUDA, order=order))


@needs_clang
@pytest.mark.parametrize("mode", [Mode.MEMORY, Mode.RACES])
@pytest.mark.parametrize(
    "pair",
    [
        ("hkivi4", "turbo4u"),
        ("hkivi5", "turbo3u"),
        ("kvarn4", "q5"),
        ("turbo4", "f16"),
        ("hkivi3", "trellis3"),
    ],
)
def test_under_sanitizers(pair: tuple[str, str], mode: Mode) -> None:
    keys, values = pair
    case = EncodeCase(
        keys=keys,
        values=values,
        dim=40,
        block=36,
        kv_heads=1,
        batch=1,
        held=50,
        feedback=keys == "hkivi3",
    )
    check(case, Emulator(mode=mode, order=Order.RANDOM))


@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
def test_the_rule_for_gpus_allows_rounding(pair: tuple[str, str]) -> None:
    """Every number moved by up to one last place, far more than sums in another order do."""
    case = EncodeCase(keys=pair[0], values=pair[1], blocks=6, dtype=mx.float32)
    moved = [
        side * (1 + mx.random.uniform(-1, 1, side.shape, key=mx.random.key(3)) * 2**-23)
        for side in drawn(case)
    ]
    assert is_rounding(*shares(case, composed(case, Tokens(*moved))))


@needs_clang
def test_what_differs_is_counted() -> None:
    def slip(call: Call) -> list[mx.array]:
        words, *others = Emulator()(call)
        return [words + (mx.arange(words.size).reshape(words.shape) % 25 == 7), *others]

    assert differing(DEFAULT, Emulator()) == (0, 0)
    codes, scales = differing(DEFAULT, slip)
    assert codes > 0.002
    assert scales == 0
    assert is_rounding(0.0001, 0)
    assert not is_rounding(codes, scales)
    assert not is_rounding(*differing(DEFAULT, zeros))


# -- what is counted --


@pytest.mark.parametrize(("dim", "feedback"), [(64, False), (128, False), (64, True)])
def test_a_block_is_one_launch(dim: int, feedback: bool) -> None:
    case = EncodeCase(dim=dim, blocks=1, batch=1, held=64, feedback=feedback)
    tokens = drawn(case)
    mx.eval(tokens)
    composed = [
        part
        for each, side in zip(case.codecs, tokens, strict=True)
        for part in each.encode(side).parts.values()
    ]
    assert launching(composed).total() > 200
    recorder = Recorder()
    encoded(case, recorder)
    assert len(recorder.calls) == 1


def test_inputs_are_whole_buffers() -> None:
    """A decoded token that completes a block: the rings as they are, no slice and no copy."""
    plan = make_plan(TierSizes(pinned=3, hot=6, block=5, slots=4), ("hkivi4", "turbo4u"))
    cache, recorder = TwoTierKVCache(plan), Recorder()
    cache._memory = tiers = GpuTiers(
        plan, decoder=TierDecoder(launch=zeros), encoder=TierEncoder(launch=recorder)
    )
    k, v = (mx.random.normal((1, 2, 14, 16)) for _ in "kv")
    cache.append(k[:, :, :13], v[:, :, :13])
    assert not recorder.calls
    ring = tiers._hot.tokens
    assert ring is not None
    cache.append(k[:, :, 13:], v[:, :, 13:])
    (call,) = recorder.calls
    assert all(any(array is side for side in ring) for array in call.inputs[:4])


@needs_clang
@pytest.mark.parametrize(
    ("case", "passes"),
    [
        (DEFAULT, (1, 1)),
        (EncodeCase(held=64), (1, 1)),
        (EncodeCase(dim=112, kv_heads=1), (1, 1)),
        (EncodeCase(dim=128, block=32), (1, 1)),
        # 64 tokens of 128 channels do not fit in threadgroup memory, as channels need them.
        (EncodeCase(dim=128), (3, 1)),
        (EncodeCase(keys="turbo3u", values="q4", dim=128), (1, 1)),
        (EncodeCase(keys="kvarn4", values="turbo3u"), (1, 1)),
        (EncodeCase(keys="f16", values="kvarn4", dim=128), (1, 12)),
        (EncodeCase(keys="turbo3u", values="h4", dim=256), (1, 1)),
        (EncodeCase(keys="trellis3", values="trellis2", dim=128, block=40, kv_heads=1), (1, 1)),
    ],
    ids=str,
)
def test_tokens_are_loaded_once_where_they_fit(case: EncodeCase, passes: tuple[int, int]) -> None:
    emulator = Emulator(mode=Mode.COUNTING)
    check(case, emulator)
    size = case.batch * case.kv_heads * case.tokens * case.dim * case.dtype.size
    for side, times in zip(("keys", "values"), passes, strict=True):
        loaded = sum(emulator.loads.get(("encode", f"{at}_{side}"), 0) for at in ("ring", "new"))
        assert loaded == times * size


@pytest.mark.parametrize(
    ("fed", "plain"), [(DEFAULT, DEFAULT), (EncodeCase(keys="kivi3"), EncodeCase(keys="kivi3"))]
)
def test_feedback_is_another_kernel(fed: EncodeCase, plain: EncodeCase) -> None:
    """With its own text and two inputs more; without, nothing is told of it."""
    with_it, without = call_of(replace(fed, feedback=True)), call_of(plain)
    assert with_it.kernel.inputs == (*without.kernel.inputs, "key_order", "key_weights")
    assert "FeedbackEncoder" in with_it.kernel.headers
    assert "Feedback" not in without.kernel.headers
    assert not any("Feedback" in str(text) for _, text in without.kernel.macros)


@pytest.mark.parametrize(
    ("case", "most"),
    [
        (EncodeCase(feedback=True), 33_000),
        (EncodeCase(dim=128, feedback=True), 71_000),
        (EncodeCase(values="trellis3"), 50_000),
        (EncodeCase(values="trellis3", dim=128), 90_000),
    ],
    ids=str,
)
@needs_nvrtc
def test_instructions_of_the_longest_simdgroup(case: EncodeCase, most: int) -> None:
    """At eleven cycles each that is 0.7 ms of a 1.3 GHz GPU, for 64 tokens of a layer."""
    call = call_of(replace(case, blocks=1, batch=1, kv_heads=1))
    program = Program.of(call)
    counts = [
        program.executed(Thread(group=(0, 0, side), index=first))
        for side in (0, 1)
        for first in range(0, call.threadgroup[0], 32)
    ]
    assert most // 2 < max(counts) < most


@needs_nvrtc
@pytest.mark.parametrize(
    "name", [*CODECS, *WIDE, *FEEDBACK, "D64 M64", "D128 M64", "D112 M64", "D80 M64"]
)
def test_registers_and_threadgroup_memory(name: str) -> None:
    call = call_of(ALL[name])
    resources = cuda.compile_cuda(call)
    assert resources.registers <= MOST_REGISTERS
    assert (resources.spilled, resources.stack) == (0, 0)
    assert resources.shared <= MOST_SHARED


@needs_clang
@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
def test_address_spaces(pair: tuple[str, str]) -> None:
    for dtype in (mx.float16, mx.bfloat16, mx.float32):
        case = EncodeCase(keys=pair[0], values=pair[1], dtype=dtype)
        assert lint(generate(call_of(case))) == []
        if isinstance(case.codecs[0], ChannelAffineCodec):
            assert lint(generate(call_of(replace(case, feedback=True)))) == []


def test_lengths_are_no_constants() -> None:
    """Text and template, what MLX compiles anew for, are those of any place and number."""
    cases = DEFAULT, EncodeCase(batch=1, blocks=7, held=31), EncodeCase(kv_heads=5, older=3)
    made = [generate(call_of(case)) for case in cases]
    assert len({(each.text, each.template) for each in made}) == 1


def test_layers_share_a_kernel() -> None:
    made, tokens = Recorder(), Tokens(mx.zeros((1, 1, 8, 64)), mx.zeros((1, 1, 8, 64)))
    for layer in range(2):
        codecs = codec("hkivi4", seed=layer), codec("turbo4u", seed=layer)
        TierEncoder(launch=made).encode(codecs, Leaving(blocks=1, block=8, new=tokens))
    first, second = made.calls
    assert first.kernel is second.kernel
    assert (np.array(first.inputs[4]) != np.array(second.inputs[4])).any()


def test_outputs_are_what_the_codecs_hold() -> None:
    call = call_of(DEFAULT)
    written = sum(
        prod(shape) * dtype.size for shape, dtype in zip(call.shapes, call.dtypes, strict=True)
    )
    bits = sum(each.bits_per_element(64, 64) for each in DEFAULT.codecs)
    assert written == bits / 8 * 64 * 64 * DEFAULT.blocks * DEFAULT.batch * DEFAULT.kv_heads


# -- what it does not take --


def test_what_is_too_large_stays_with_mlx() -> None:
    kvarn, kivi = codec("kvarn4"), codec("hkivi5")
    assert encodes((kivi, kivi), 4096, 128)
    assert encodes((kvarn, kivi), 512, 128)
    assert not encodes((kvarn, kivi), 2048, 128)
    assert all(encodes((codec(keys), codec("turbo4u")), 64, 256) for keys in ("hkivi4", "kvarn4"))
    fed = EncodeCase(feedback=True).codecs
    assert all(encodes(fed, block, dim) for block, dim in ((64, 256), (128, 128), (128, 64)))
    assert not encodes(fed, 256, 64)
    plan = make_plan(TierSizes(pinned=0, hot=0, block=2600, slots=2), ("kvarn4", "kvarn2"))
    tiers = GpuTiers(plan, encoder=TierEncoder(launch=zeros))
    k, v = (mx.random.normal((1, 1, 2600, 8)) for _ in "kv")
    tiers.write_cold(0, Tokens(k, v))
    assert np.array(tiers.pending()[0]).any()


def test_a_head_dimension_that_does_not_rotate_is_told() -> None:
    tokens = Tokens(mx.zeros((1, 1, 8, 72)), mx.zeros((1, 1, 8, 72)))
    with pytest.raises(CacheError, match="head dimension 72"):
        TierEncoder(launch=zeros).encode(
            (codec("hkivi5"), codec("kivi3")), Leaving(blocks=1, block=8, new=tokens)
        )
