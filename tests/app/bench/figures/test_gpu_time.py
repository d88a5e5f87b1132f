"""A token's time by hand, on a chip with round numbers."""

import json

import pytest

from app.bench.figures.chips import CHIPS, Chip
from app.bench.figures.gpu_time import FAST, FILE, SLOW, Assumed, Costs, Work, counted

# 128e9 instructions and 1e9 bytes a second.
CHIP = Chip(name="round", gb_s=1, memory_gib=1, gpu_cores=1, gpu_ghz=1.0)
HALF = Assumed(bandwidth=0.5, issue=0.25, launch_s=1e-3)


def test_weights_and_launches_by_hand() -> None:
    work = Work(weights=3e9, other=1e9, launches=10)
    # 4e9 bytes at half of 1e9; ten launches and six around the layers
    assert work.seconds(CHIP, HALF) == pytest.approx(8 + 0.016)
    assert work.encoding_seconds(CHIP, HALF) == 0


@pytest.mark.parametrize(
    ("instructions", "seconds"), [(0, 2.0), (63e9, 2.0), (128e9, 4.0), (256e9, 8.0)]
)
def test_a_kernel_takes_its_longer_side(instructions: float, seconds: float) -> None:
    """1e9 bytes take two seconds; 32e9 instructions one."""
    for work in (
        Work(weights=0, encoded=1e9, encoded_instructions=instructions),
        Work(weights=0, unencoded=1e9, unencoded_instructions=instructions),
    ):
        assert work.seconds(CHIP, HALF) == pytest.approx(seconds + 0.006)


def test_kernels_follow_each_other() -> None:
    """What one has left of bandwidth, the other does not get."""
    work = Work(weights=0, encoded=1e9, unencoded=1e9, unencoded_instructions=128e9)
    assert work.seconds(CHIP, HALF) == pytest.approx(2 + 4 + 0.006)


def test_encoding_is_a_part_of_the_time() -> None:
    work = Work(weights=1e9, encoding=0.5e9, encoding_launches=7)
    assert work.encoding_seconds(CHIP, HALF) == pytest.approx(1 + 0.007)
    assert work.seconds(CHIP, HALF) == pytest.approx(2 + 1 + 0.007 + 0.006)


@pytest.mark.parametrize(("cores", "seconds"), [(1, 4 * 4.0), (2, 2 * 4.0), (4, 4.0), (9, 4.0)])
def test_encoding_issues_on_the_cores_that_it_has_work_for(cores: int, seconds: float) -> None:
    """512e9 instructions, at a quarter of the 512e9 a second of four cores."""
    chip = Chip(name="four", gb_s=1, memory_gib=1, gpu_cores=4, gpu_ghz=1.0)
    work = Work(weights=0, encoding=1, encoding_instructions=512e9, encoding_cores=cores)
    assert work.encoding_seconds(chip, HALF) == pytest.approx(seconds)


def test_the_range_is_one() -> None:
    assert FAST.bandwidth > SLOW.bandwidth
    assert FAST.issue > SLOW.issue
    assert FAST.launch_s < SLOW.launch_s


def test_the_three_chips_have_a_gpu() -> None:
    known = {chip.name: chip.gpu_cores * 128 * 2 * chip.gpu_ghz for chip in CHIPS if chip.gpu_cores}
    # Teraflops, as others state them.
    assert {name: round(gflops / 1e3, 1) for name, gflops in known.items()} == {
        "M1": 2.6,
        "M3 Pro": 6.4,
        "M4 Max": 16.2,
    }


def test_kernels_have_more_threadgroups_on_larger_chips() -> None:
    of = {chip.name: chip.threadgroups for chip in CHIPS}
    assert of["M1"] == of["M3 Pro"] == 96
    assert (of["M4 Max"], of["M2 Ultra"], of["H200"]) == (192, 384, 528)


def test_the_file_is_what_is_read() -> None:
    assert counted() is counted()
    assert counted().as_json() == json.loads(FILE.read_text())
    assert Costs.read() == counted()
