"""Warm-up of a plan's kernels, in the emulator: what it compiles, and what it notices."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import mlx.core as mx
import pytest

from kvcache import (
    Backend,
    CacheConfig,
    CacheError,
    CachePlan,
    ModelShape,
    TwoTierKVCache,
    resolve,
    two_tier,
    warm_up,
)
from kvcache.gpu import TierDecoder, TierEncoder, TierPrefill
from kvcache.gpu.kernel import Call, Launcher
from kvcache.tiers.gpu import GpuTiers
from kvcache.tiers.plan import LayerPlan
from tests.metal.build import find_compiler
from tests.metal.emulator import Emulator
from tests.metal.generated import generate
from tests.metal.recording import zeros

pytestmark = pytest.mark.skipif(
    find_compiler() is None, reason="needs clang++ 18 or newer on x86-64 Linux"
)

GROUP = 3
SHAPE = ModelShape(layers=5, kv_heads=2, head_dim=64, context=4096)
UseGpu = Callable[[Launcher], None]


@dataclass(frozen=True, kw_only=True)
class Watched:
    """The emulator; keeps each kernel's text and constants, what MLX compiles anew for."""

    emulator: Emulator = field(default_factory=Emulator)
    compiled: set[tuple[str, tuple[str, ...]]] = field(default_factory=set)

    def __call__(self, call: Call) -> list[mx.array]:
        """Note and run."""
        made = generate(call)
        self.compiled.add((made.text, made.template))
        return self.emulator(call)


@pytest.fixture
def use_gpu(monkeypatch: pytest.MonkeyPatch) -> UseGpu:
    """Makes this machine one with a GPU, which is a launcher."""

    def use(launch: Launcher) -> None:
        def make(plan: LayerPlan) -> GpuTiers:
            decoder, prefill = TierDecoder(launch=launch), TierPrefill(launch=launch)
            encoder = TierEncoder(launch=launch)
            return GpuTiers(plan, decoder=decoder, prefill=prefill, encoder=encoder)

        monkeypatch.setattr("kvcache.config.on_gpu", lambda: True)
        monkeypatch.setattr(two_tier, "GpuTiers", make)

    return use


def plan_of(**fields: object) -> CachePlan:
    config = {"hot": 21, "block": 33, "max_tokens": 700, "check_finite": False} | fields
    return resolve(CacheConfig.from_dict(config), SHAPE)


def warmed(plan: CachePlan, dtype: mx.Dtype = mx.float16) -> CachePlan:
    return warm_up(plan, group=GROUP, dtype=dtype)


@pytest.mark.parametrize("kv", [("hkivi5", "turbo3u"), ("q4", "kvarn3"), ("f16", "kivi2")])
def test_no_answer_compiles_anything_more(kv: tuple[str, str], use_gpu: UseGpu) -> None:
    """A prompt in steps, then tokens: layers, lengths and segments other than warm-up's."""
    launch = Watched()
    use_gpu(launch)
    plan = plan_of(keys=kv[0], values=kv[1])
    assert warmed(plan) is plan
    before = set(launch.compiled)
    cache = TwoTierKVCache(plan.layer(3))
    for length in (70, 1, 1, 65, 130, 300, 1, 260, 1, 1):
        q, k, v = (
            mx.random.normal((1, heads, length, 64)).astype(mx.float16)
            for heads in (2 * GROUP, 2, 2)
        )
        mx.eval(cache.attend(q, k, v, scale=0.1))
    assert cache.stats().evicted
    assert launch.compiled == before


@pytest.mark.parametrize("hot_dtype", ["f16", "bf16", "f32"])
def test_right_kernels_pass(hot_dtype: str, use_gpu: UseGpu) -> None:
    use_gpu(Emulator())
    plan = plan_of(hot_dtype=hot_dtype)
    dtype = {"f16": mx.float16, "bf16": mx.bfloat16, "f32": mx.float32}[hot_dtype]
    assert warmed(plan, dtype) is plan
    assert not TwoTierKVCache(plan.layer(0)).stats().plain


def nothing(call: Call) -> list[mx.array]:
    """As zeros, but of the merge, whose output is then not a number."""
    return [array / 0 for array in zeros(call)]


def refuse(_call: Call) -> list[mx.array]:
    """What MLX does with text that Metal's compiler refuses."""
    raise RuntimeError("[metal::Device] Unable to build metal library from source\nmore")


@dataclass(frozen=True, kw_only=True)
class Slip:
    """An emulator with one kernel wrong."""

    stem: str

    def __call__(self, call: Call) -> list[mx.array]:
        """The outputs, of `stem` shifted by one element."""
        outputs = Emulator()(call)
        if call.kernel.stem != self.stem:
            return outputs
        return [mx.roll(outputs[0], 1), *outputs[1:]]


def one_clip(call: Call) -> list[mx.array]:
    """An emulator whose encoder tries no clip but the whole range."""
    if call.kernel.stem == "encode":
        at = call.kernel.inputs.index("numbers")
        clips = mx.arange(80) % 40 >= 32
        inputs = [*call.inputs]
        inputs[at] = mx.where(clips, 1.0, inputs[at])
        call = replace(call, inputs=inputs)
    return Emulator()(call)


SLIPS = [Slip(stem=stem) for stem in ("cold", "expand", "encode")]


@pytest.mark.parametrize("launch", [zeros, nothing, one_clip, *SLIPS])
def test_wrong_kernels_are_not_used(launch: Launcher, use_gpu: UseGpu) -> None:
    use_gpu(launch)
    plan = warmed(plan_of())
    assert plan.backend is plan.layer(0).backend is Backend.REFERENCE
    assert "differ from plain MLX" in str(plan.plain_because)


def test_kernels_that_do_not_compile_are_not_used(use_gpu: UseGpu) -> None:
    use_gpu(refuse)
    plan = warmed(plan_of())
    assert plan.backend is Backend.REFERENCE
    assert "Unable to build metal library from source; run" in str(plan.plain_because)


@pytest.mark.parametrize("launch", [zeros, refuse])
def test_who_asks_for_the_gpu_backend_is_told(launch: Launcher, use_gpu: UseGpu) -> None:
    use_gpu(launch)
    with pytest.raises(CacheError, match="reference"):
        warmed(plan_of(backend="gpu"))


def test_another_backend_has_nothing_to_compile() -> None:
    plan = plan_of(backend="reference")
    assert warmed(plan) is plan
