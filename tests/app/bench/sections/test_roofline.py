"""Ceilings by hand: one layer, two query heads over a KV head of 64, 32 tokens vocabulary."""

from dataclasses import replace

import pytest

from app.bench.figures import gpu_time
from app.bench.figures.chips import CHIPS
from app.bench.figures.shapes import LLAMA_2_7B, TINYLLAMA, Network
from app.bench.meter import Meter
from app.bench.sections import roofline, roofline_view
from app.bench.sections.roofline import RooflineRow
from app.bench.settings import RooflineSettings

SMALL = Network(
    name="small",
    layers=3,
    hidden=128,
    ffn=6,
    heads=2,
    kv_heads=1,
    head_dim=64,
    vocabulary=32,
    context=64,
    weight_bytes=100_000,
)


M1 = next(chip for chip in CHIPS if chip.name == "M1")


@pytest.fixture(scope="module")
def rows() -> list[RooflineRow]:
    settings = RooflineSettings(model="", kv=("hkivi4/turbo4u", "q8"), contexts=(4096, 32768))
    with Meter(1) as meter:
        return list(roofline.run(settings, meter))


def test_weights_are_read_but_for_the_table() -> None:
    assert roofline.weights_read(SMALL) == 100_000 - 32 * 128 * 9 // 16


@pytest.mark.parametrize(
    ("context", "pinned", "hot", "blocks"),
    [(3, 3, 0, 0), (200, 4, 196, 0), (323, 4, 319, 0), (324, 4, 256, 1), (4096, 4, 316, 59)],
)
def test_tiers_of_so_many_tokens(context: int, pinned: int, hot: int, blocks: int) -> None:
    found = roofline.held(context)
    assert (found.pinned, found.hot, found.blocks) == (pinned, hot, blocks)


def test_bytes_of_a_token_by_hand() -> None:
    """324 tokens: 4 pinned and 256 hot ones of 256 bytes, a block of 64."""
    found = roofline.moved(SMALL, "q8/q4", 324, M1)
    # Codes and, for each token and 64 channels, a scale and a zero of 2 bytes.
    block = 64 * (64 + 4) + 64 * (32 + 4)
    assert found.cache == 3 * (260 * 256 + block)
    # Rows of 64 channels, 2 of them: read by the kernels of unencoded and of cold tokens; written.
    queries, output = 2 * 64 * 2 * 2, 2 * 64 * 2
    # Two spans each of pinned, hot and cold tokens: of two rows there are four partial results.
    scratch = 2 * 2 * 6 * (64 + 2) * 4
    assert found.other == 3 * (queries + output + scratch)
    f16 = roofline.f16_moved(SMALL, 324)
    assert f16.cache == 3 * 324 * 2 * 64 * 2
    assert f16.other == 3 * (2 * 64 * 2 * 2)
    assert f16.total == found.weights + f16.cache + f16.other


def test_larger_chips_leave_more_partial_results() -> None:
    """As many as the kernels have spans for there; the cache is the same."""
    of = {chip.name: roofline.moved(TINYLLAMA, "hkivi4/turbo4u", 32768, chip) for chip in CHIPS}
    assert len({each.cache for each in of.values()}) == 1
    others = [of[name].other for name in ("M1", "M4 Max", "M3 Ultra")]
    assert others[0] < others[1] <= others[2]
    assert of["M1"] == of["M4 Pro"]
    assert of["H200"].other >= of["M3 Ultra"].other


def test_ceilings_by_hand(rows: list[RooflineRow]) -> None:
    assert len(rows) == 2 * 2 * len(CHIPS) * 3
    for row in rows:
        moved = row.weight_bytes + row.cache_bytes + row.other_bytes
        assert row.tokens_s == pytest.approx(row.gb_s * 1e9 / moved)
    f16 = next(row for row in rows if row.model == LLAMA_2_7B.name and row.context == 32768)
    # On an M1: weights of 4.081e9 but for 32000 rows of 2304 bytes, 32768 tokens of 524288, and
    # queries and outputs of 32 layers.
    assert (f16.chip, f16.kv, f16.over_f16) == ("M1", "f16", 1)
    assert f16.tokens_s == pytest.approx(68.25e9 / 21_187_665_472, rel=1e-6)
    # 17.2 GB of cache beside 4.1 GB of weights, of 16 GiB
    assert not f16.fits


def test_a_ratio_is_that_of_speeds_and_below_that_of_bits(rows: list[RooflineRow]) -> None:
    found = {(row.model, row.chip, row.context, row.kv): row for row in rows}
    for (model, chip, context, kv), row in found.items():
        f16 = found[model, chip, context, "f16"]
        assert row.over_f16 == pytest.approx(row.tokens_s / f16.tokens_s)
        assert 1 <= row.over_f16 <= {"f16": 1, "q8": 16 / 8.5, "hkivi4/turbo4u": 16 / 4.3}[kv]


def test_every_chip_is_shown_and_called_computed(rows: list[RooflineRow]) -> None:
    of_bytes, *ceilings, _ = roofline_view.tables(rows)
    assert len(of_bytes.rows) == 2 * 2 * 3
    assert len(ceilings) == 2 * 2
    for table in ceilings:
        assert "computed, nothing measured" in table.title
        assert [row[0] for row in table.rows] == [chip.name for chip in CHIPS]
    (m1, *_), llama = ceilings[2].rows, ceilings[2]
    assert llama.title.startswith(f"Ceiling of {LLAMA_2_7B.name} with hkivi4/turbo4u")
    assert llama.columns[-3:] == ("32k f16", "32k ember", "times")
    assert (m1[-3], m1[-1]) == ("-", "-")  # does not fit
    assert roofline_view.VIEW.charts(rows) == []
    said = roofline_view.findings(rows)
    assert len(said) == 4
    assert all(sentence.startswith("Computed, nothing measured: at 32k") for sentence in said)
    assert TINYLLAMA.name in said[0]


def test_the_work_of_a_token_by_hand() -> None:
    """TinyLlama at 324 tokens: 4 pinned, 256 hot, a block, in 22 layers of 4 KV heads."""
    costs = gpu_time.counted()
    found = roofline.work(TINYLLAMA, "hkivi4/turbo4u", 324, M1, letting_go=True)
    assert found is not None
    moved = roofline.moved(TINYLLAMA, "hkivi4/turbo4u", 324, M1)
    assert found.unencoded == 22 * 4 * 260 * 256
    assert found.encoded + found.unencoded == moved.cache
    assert found.weights + found.other == moved.weights + moved.other
    assert found.weight_instructions == costs.products["Q4_K"] * found.weights
    of_tokens = costs.instructions[TINYLLAMA.name]
    assert found.unencoded_instructions == pytest.approx(of_tokens.unencoded * found.unencoded)
    assert found.encoded_instructions > of_tokens.encoded * found.encoded
    # A token read as float16 and a 64th of a block written, of each KV head.
    assert found.encoding == pytest.approx(22 * 4 * 256 + found.encoded / 64)
    assert found.launches == 22 * costs.launches.letting_go
    assert found.encoding_instructions == pytest.approx(of_tokens.encoding * found.encoding)
    assert found.encoding_launches == 22 * costs.launches.block / 64
    assert found.encoding_cores == 4 * of_tokens.encoding_threadgroups
    before = roofline.work(TINYLLAMA, "hkivi4/turbo4u", 324, M1, letting_go=False)
    assert before is not None
    assert before.launches == 22 * costs.launches.token


def test_mlx_lms_work_is_bytes_and_launches() -> None:
    found = roofline.work(TINYLLAMA, "f16", 4096, M1, letting_go=True)
    assert found is not None
    plain = roofline.f16_moved(TINYLLAMA, 4096)
    assert found.weights + found.other == plain.total
    assert found.launches == 22 * gpu_time.counted().launches.mlx_lm
    assert found.encoding_launches == found.encoded_instructions == found.weight_instructions == 0


def test_each_kernel_takes_its_longer_side() -> None:
    assumed = gpu_time.Assumed(bandwidth=0.5, issue=0.25, launch_s=0.0)
    bytes_s, issued_s = M1.gb_s * 1e9 * 0.5, 8 * 128 * 1.278e9 * 0.25
    for issued, seconds in ((1e6, 1e9 / bytes_s), (1e12, 1e12 / issued_s)):
        work = gpu_time.Work(weights=1e9, weight_instructions=issued)
        assert work.seconds(M1, assumed) == pytest.approx(seconds)


def test_times_are_given_where_they_are_known(rows: list[RooflineRow]) -> None:
    """No chip without a clock, and no codec whose kernels nobody has counted."""
    timed = {(row.chip, row.kv) for row in rows if row.fast_ms is not None}
    assert timed == {
        (chip, kv) for chip in ("M1", "M3 Pro", "M4 Max") for kv in ("f16", "hkivi4/turbo4u")
    }
    for row in rows:
        if row.fast_ms is not None and row.slow_ms is not None and row.encoding_ms is not None:
            # Slower than bandwidth alone allows.
            assert 1e3 / row.tokens_s < row.fast_ms < row.slow_ms
            assert (row.encoding_ms > 0) is (row.kv != "f16")


def test_times_are_shown_as_a_range(rows: list[RooflineRow]) -> None:
    table = roofline_view.tables(rows)[-1]
    assert table.title == "Time of a token, ms: computed, nothing measured"
    assert table.columns == ("model", "chip", "kv", "4k", "32k", "encoding")
    assert len(table.rows) == 2 * 3 * 2
    f16, ours = table.rows[:2]
    assert (f16[:3], f16[-1]) == (("TinyLlama 1.1B", "M1", "f16"), "-")
    assert ours[:3] == ("TinyLlama 1.1B", "M1", "hkivi4/turbo4u")
    assert all(" to " in cell for cell in (*f16[3:5], *ours[3:5]))
    assert ours[-1].endswith("%")
    # Llama-2-7B's fp16 cache of 32k does not fit an M1.
    assert table.rows[6][:5] == ("Llama-2-7B", "M1", "f16", table.rows[6][3], "-")
    assert "90% to 70% of bandwidth" in table.note


def test_an_earlier_result_has_no_times(rows: list[RooflineRow]) -> None:
    """Its rows lack the fields; all else is shown."""
    bare = [replace(row, fast_ms=None, slow_ms=None, encoding_ms=None) for row in rows]
    assert len(roofline_view.tables(bare)) == 1 + 2 * 2
