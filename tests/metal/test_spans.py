"""How attention is cut to a GPU: spans, their scratch, and what a call costs before it runs."""

import ctypes
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import pytest

from kvcache import codec
from kvcache.gpu import TierDecoder
from kvcache.gpu.device import threadgroups_here, threadgroups_of
from kvcache.gpu.kernel import Call
from kvcache.gpu.shape import CallShape
from kvcache.gpu.traffic import Held, traffic
from tests.metal.cases import TIERS, TURNS
from tests.metal.generated import generate
from tests.metal.recording import Recorder, calls_of
from tests.metal.samples import Case, make

# KV heads, query heads of each, head dimension.
MODELS = {
    "TinyLlama": (4, 8, 64),
    "Llama-2-7B": (32, 1, 128),
    "SmolLM2-135M": (3, 3, 64),
    "SmolLM2-1.7B": (32, 1, 64),
    "Qwen2.5-0.5B": (2, 7, 64),
    "Qwen2.5-7B": (4, 7, 128),
    "Qwen3-8B": (8, 4, 128),
}
DEVICES = {"M1": 96, "M4 Max": 192, "M2 Ultra": 384, "H200": 4 * 132}
TOKENS = 16384
MOST_SCRATCH = 0.15


@pytest.mark.parametrize("threadgroups", DEVICES.values(), ids=DEVICES)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("new", [1, 4, 8])
def test_scratch_is_small_beside_the_cache(model: str, threadgroups: int, new: int) -> None:
    heads, group, dim = MODELS[model]
    found = traffic(
        CallShape(batch=1, kv_heads=heads, group=group, new=new, dim=dim),
        Held(pinned=4, hot=319, blocks=(TOKENS - 323) // 64, block=64),
        keys=codec("hkivi4"),
        values=codec("turbo4u"),
        threadgroups=threadgroups,
    )
    assert found.scratch <= MOST_SCRATCH * found.cache


@pytest.mark.parametrize("model", ["TinyLlama", "Llama-2-7B", "SmolLM2-135M", "Qwen3-8B"])
def test_a_larger_gpu_is_given_more_to_do(model: str) -> None:
    heads, group, dim = MODELS[model]
    shape = CallShape(batch=1, kv_heads=heads, group=group, new=1, dim=dim)
    spans = [shape.spans(TOKENS // 64, threadgroups) for threadgroups in DEVICES.values()]
    assert spans == sorted(spans)
    assert spans[0] < spans[-1]
    # A base chip has 8 cores.
    assert spans[0] * shape.heads * shape.row_parts >= 3 * 8


@pytest.mark.parametrize("dim", [64, 128])
def test_spans_hold_four_blocks_and_one_for_each_simdgroup(dim: int) -> None:
    shape = CallShape(batch=1, kv_heads=4, group=8, new=1, dim=dim)
    each = max(4, shape.simdgroups)
    assert [shape.spans(blocks, 10**6) for blocks in (1, each, each + 1)] == [1, 1, 2]


@pytest.mark.parametrize(
    ("architecture", "like"),
    [
        ("applegpu_g13g", "M1"),
        ("applegpu_g16s", "M4 Max"),
        ("applegpu_g14d", "M2 Ultra"),
        ("applegpu_g17p", "M1"),
        ("x86_64", "M1"),
        ("", "M1"),
    ],
)
def test_a_metal_gpu_is_known_by_its_last_letter(architecture: str, like: str) -> None:
    assert threadgroups_of(architecture) == DEVICES[like]


@dataclass(frozen=True, kw_only=True)
class Driver:
    """CUDA's, of a machine with 132 multiprocessors; failing: the name of what fails."""

    failing: str = ""

    def __getattr__(self, name: str) -> Any:
        def called(*arguments: Any) -> int:
            if name == "cuDeviceGetAttribute":
                assert arguments[1] == 16
                arguments[0]._obj.value = 132
            return 100 if name == self.failing else 0

        return called


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A machine with CUDA, whose driver is still to be said."""
    monkeypatch.setattr(mx.cuda, "is_available", lambda: True)
    threadgroups_here.cache_clear()
    yield monkeypatch
    threadgroups_here.cache_clear()


def test_a_cuda_gpu_is_known_by_its_multiprocessors(cuda: pytest.MonkeyPatch) -> None:
    cuda.setattr(ctypes, "CDLL", lambda _: Driver())
    assert threadgroups_here() == DEVICES["H200"]


@pytest.mark.parametrize("failing", ["cuInit", "cuDeviceGet", "cuDeviceGetAttribute"])
def test_a_cuda_gpu_that_does_not_tell_is_as_a_base_chip(
    failing: str, cuda: pytest.MonkeyPatch
) -> None:
    cuda.setattr(ctypes, "CDLL", lambda _: Driver(failing=failing))
    assert threadgroups_here() == DEVICES["M1"]


def test_a_cuda_gpu_without_driver_is_as_a_base_chip(cuda: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    cuda.setattr(ctypes, "CDLL", missing)
    assert threadgroups_here() == DEVICES["M1"]


def test_layers_share_what_is_the_same_for_all() -> None:
    """Numbers and turns are made for the first layer of a token."""
    layers = []
    for seed in range(2):
        recorder, sample = Recorder(), make(TIERS["window moves"], codec_seed=seed)
        decoder = TierDecoder(launch=recorder)
        decoder.attend(sample.q, sample.held, sample.sight, scale=0.5)
        layers.append(
            {
                (call.kernel.stem, name): array
                for call in recorder.calls
                for name, array in zip(call.kernel.inputs, call.inputs, strict=True)
            }
        )
    one, other = layers
    shared = {key for key, array in one.items() if other[key] is array}
    of_all = {(stem, "args") for stem in ("cold", "unencoded", "merge")}
    assert shared == of_all | {("unencoded", "turns"), ("cold", "levels")}


@pytest.mark.parametrize("name", ["two launches", "pinned many"])
def test_text_is_bare(name: str) -> None:
    """MLX copies and hashes it at each call."""
    for call in calls_of(TIERS[name]):
        lines = generate(call).text.splitlines()
        assert not [line for line in lines if "//" in line]
        spaces = sum(len(line) - len(line.lstrip()) for line in lines)
        assert spaces < 300, "MLX indents its parameters"


def test_a_kernel_has_only_the_headers_that_it_names() -> None:
    texts = {call.kernel.stem: generate(call).text for call in calls_of(TIERS["cold grows"])}
    assert {stem for stem, text in texts.items() if "struct KVarN" in text} == {"cold"}
    assert {stem for stem, text in texts.items() if "struct Hadamard" in text} == {"cold", "merge"}


def operations_of(case: Case) -> Counter[str]:
    """MLX's primitives of a call, as the graph that it exports has them."""
    sample = make(case)
    found: Counter[str] = Counter()

    def as_metal(call: Call) -> list[mx.array]:
        outputs: list[mx.array] = call.kernel.metal_function(**call.arguments())
        return outputs

    def note(message: dict[str, Any]) -> None:
        if message["type"] == "primitive":
            found[message["name"]] += 1

    decoder = TierDecoder(launch=as_metal, threadgroups=case.threadgroups)

    def attend(q: mx.array) -> mx.array:
        return decoder.attend(q, sample.held, sample.sight, scale=sample.scale)

    mx.export_function(note, attend, sample.q)
    return found


@pytest.mark.parametrize(
    ("case", "launches"),
    [
        (TURNS["of one query of two"], 3),
        (Case(evicted=0), 3),
        (TIERS["window moves"], 3),
        (Case(dim=80), 3),
        (TIERS["hot only"], 2),
    ],
    ids=["some turned", "none turned", "window moves", "no power of two", "nothing cold"],
)
def test_a_token_is_three_launches_and_nothing_else(case: Case, launches: int) -> None:
    assert operations_of(case) == {"CustomKernel": launches}


def test_a_codec_of_many_parts_takes_one_launch_more_and_joins_their_results() -> None:
    assert operations_of(TIERS["two launches"]) == {"CustomKernel": 4, "Concatenate": 2}
