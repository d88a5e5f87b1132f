"""What the roofline's times are computed from: instructions and launches, counted."""

from collections.abc import Sequence

import mlx.core as mx
import pytest

from app.bench.figures.gpu_time import Costs
from kvcache import CacheConfig
from kvcache.codecs import codec
from kvcache.gpu.kernel import Call, Kernel
from kvcache.gpu.traffic import block_bytes
from models.gguf.tensor_types import TensorType
from tests.metal import costs, cuda, launches
from tests.metal.ptx import Program, Thread, executed_by

needs_nvrtc = pytest.mark.skipif(
    not cuda.is_available(), reason="needs the dependency group nvrtc (Linux, x86-64)"
)
MOST_FOR_A_WEIGHT = {TensorType.Q4_K: 7.5, TensorType.Q6_K: 9.0, TensorType.Q8_0: 7.0}
AGAIN = "python -m tests.metal.costs"


@needs_nvrtc
def test_the_file_says_what_is_counted() -> None:
    """Another compiler may take some other instructions; launches are what they are."""
    found, kept = costs.costs(), Costs.read()
    assert found.launches == kept.launches, AGAIN
    assert found.instructions.keys() == kept.instructions.keys()
    for name, counted in found.instructions.items():
        said = kept.instructions[name]
        assert counted.encoded == pytest.approx(said.encoded, rel=0.02), AGAIN
        assert counted.unencoded == pytest.approx(said.unencoded, rel=0.02), AGAIN
        assert counted.threadgroup == pytest.approx(said.threadgroup, rel=0.05), AGAIN
    assert found.products == pytest.approx(kept.products, rel=0.02), AGAIN


@pytest.mark.parametrize(
    ("name", "rows", "dim", "most"), [("TinyLlama 1.1B", 8, 64, 27.5), ("Llama-2-7B", 1, 128, 11.5)]
)
def test_an_encoded_byte_takes_few_instructions_beside_the_products(
    name: str, rows: int, dim: int, most: float
) -> None:
    """A product and sum for each row and each number are not to be had for less."""
    config = CacheConfig()
    bytes_of_block = block_bytes(codec(config.keys), codec(config.values), config.block, dim)
    products = 2 * rows * dim * config.block / bytes_of_block
    encoded = Costs.read().instructions[name].encoded
    assert products < encoded < most
    assert encoded - products < 13


@pytest.mark.parametrize(("kind", "most"), MOST_FOR_A_WEIGHT.items())
def test_a_weight_takes_few_instructions_of_a_product(kind: TensorType, most: float) -> None:
    """Three at the least: its bits, a number of them, a product and sum."""
    each = Costs.read().products[kind.name] * kind.block_bytes / kind.block_size
    assert 3 < each < most


# -- instructions --


def toy(source: str, numbers: Sequence[int] = (), *, threads: int = 64, groups: int = 2) -> Call:
    """A kernel of some whole numbers and some others."""
    return Call(
        kernel=Kernel(
            stem="toy", source=source, headers="", inputs=("numbers", "x"), outputs=("out",)
        ),
        inputs=[mx.array([*numbers, *[0] * 8], mx.int32), mx.zeros(4096)],
        constants={},
        grid=(threads * groups, 1, 1),
        threadgroup=(threads, 1, 1),
        shapes=[(4096,)],
        dtypes=[mx.float32],
    )


LOOP = """
const int i = int(thread_index_in_threadgroup) + 64 * int(threadgroup_position_in_grid.x);
float sum = 0.0f;
_Pragma("unroll 1") for (int j = numbers[1]; j < numbers[0]; j += 3) sum = sum * x[j] + x[i];
out[i] = sum;
"""


def executed(call: Call, *, group: int = 0, index: int = 0) -> int:
    return Program.of(call).executed(Thread(group=(group, 0, 0), index=index))


@needs_nvrtc
def test_a_loop_costs_by_its_rounds() -> None:
    """What it reads in memory says how many: by the first number from the second, in threes."""
    counts = [executed(toy(LOOP, (end, 4))) for end in (4, 7, 10, 12, 13, 304)]
    one = counts[1] - counts[0]
    rounds = [round((count - counts[1]) / (counts[2] - counts[1])) for count in counts[1:]]
    assert one > 0
    assert rounds == [0, 1, 2, 2, 99]


@needs_nvrtc
def test_only_the_path_that_a_thread_takes_counts() -> None:
    text = """
const int i = int(thread_index_in_threadgroup);
float sum = x[i];
if (threadgroup_position_in_grid.x == 1u && i % 32 >= 16) {
  _Pragma("unroll 1") for (int j = 0; j < 1000 - i; j++) sum = sum * x[j] + 1.0f;
}
out[i] = sum;
"""
    call = toy(text)
    short = executed(call)
    assert short < 40
    assert executed(call, group=1, index=15) < 40
    assert executed(call, group=1, index=16) - executed(call, group=1, index=48) in range(64, 400)


@needs_nvrtc
@pytest.mark.parametrize(
    ("expression", "rounds"),
    [
        ("numbers[0] / numbers[1]", -3),
        ("numbers[0] % numbers[1]", -2),
        ("numbers[0] / 3", -5),
        ("int(uint(-numbers[0]) % 6u)", 5),
        ("min(-numbers[0], numbers[1] * 9)", 17),
        ("(numbers[0] >> 2) + (numbers[1] << 2)", 15),
        ("int(uint(numbers[0]) >> 28)", 15),
        ("numbers[0] & 63", 47),
        ("(numbers[0] ^ 5) + 40", 18),
        ("numbers[1] > 4 ? 11 : 3", 11),
    ],
)
def test_whole_numbers_are_computed_as_the_gpu_does(expression: str, rounds: int) -> None:
    """Of -17 and 5: so often a loop runs, whose rounds cost far more than the expression."""

    def counted(bound: str, *numbers: int) -> int:
        body = "UNROLL for (int k = 0; k < 40; k++) sum = sum * x[j + k] + 1.0f;"
        return executed(
            toy(
                f"const int n = {bound}; float sum = 0.0f;"
                f'_Pragma("unroll 1") for (int j = 0; j < n; j++) {{ {body} }} out[0] = sum;',
                numbers,
            )
        )

    ran = counted(f"100 + ({expression})", -17, 5)
    hundred, one_more = counted("numbers[0]", 100), counted("numbers[0]", 101)
    assert (ran - hundred) / (one_more - hundred) == pytest.approx(rounds, abs=0.4)


@needs_nvrtc
def test_all_simdgroups_count() -> None:
    call = toy(LOOP, (40, 1), threads=96, groups=3)
    each = [executed(call, group=group, index=32 * i) for group in range(3) for i in range(3)]
    assert executed_by(call) == sum(each)


@needs_nvrtc
def test_a_vote_is_yes_the_first_time() -> None:
    """What only a vote lets in counts once, whatever it is about and however often it is asked."""
    body = "UNROLL for (int k = 0; k < 40; k++) sum = sum * x[j + k] + 1.0f;"
    text = "float sum = 0.0f; ROLLED for (int j = 0; j < numbers[0]; j++) {{ {} }} out[0] = sum;"
    voted = text.format(f"if (simd_any(x[j] > sum)) {{ {body} }} else sum += 1.0f;")
    once, often = (executed(toy(voted, (rounds,))) for rounds in (1, 9))
    assert once > 80
    assert often - once < 8 * 20


@needs_nvrtc
def test_a_loop_that_ends_by_what_is_not_known_is_told() -> None:
    text = "int j = 0; while (x[j] > 0.0f) j = j * 7 + 1; out[j] = 1.0f;"
    with pytest.raises(RuntimeError, match="a loop whose end is not known"):
        executed(toy(text))


@needs_nvrtc
def test_what_nvrtc_refuses_is_told() -> None:
    with pytest.raises(RuntimeError, match="NVRTC refused"):
        executed(toy("out[0] = nothing;"))


# -- launches --


def test_a_draft_takes_a_launch_more_in_each_layer_however_long_it_is() -> None:
    for held in (20, 60, 500):
        alone = launches.token(held)
        assert {launches.rows(count, held) for count in (2, 5, 8)} == {alone + 1}


def test_mlx_lm_launches_what_its_code_says() -> None:
    """Norms 2, products 7, ropes 2, cache 2, attention 1, SwiGLU 1, residuals 2."""
    assert launches.mlx_lm_token(90) == 17


def test_a_block_is_encoded_with_the_token_that_completes_it() -> None:
    """Whatever is held before it, a token that completes none launches the same."""
    few, many = (launches.token(held) for held in (150, 155))
    assert few == many
    assert launches.block() > 0
