import math
import time
from dataclasses import replace
from functools import partial

import mlx.core as mx
import pytest

from app.bench.figures.shapes import network_of
from app.bench.machine import Machine, machine, seconds_of
from app.bench.meter import Meter
from app.bench.sections import attention, attention_view
from app.bench.sections.attention import AttentionRow
from app.bench.settings import AttentionSettings
from kvcache import Backend
from kvcache.codecs.feedback import LayerMetric
from kvcache.gpu import TierDecoder, TierEncoder
from kvcache.tiers.gpu import GpuTiers
from kvcache.tiers.plan import LayerPlan
from tests.metal.build import find_compiler
from tests.metal.emulator import Emulator


@pytest.fixture(scope="module")
def settings(tiny_path: object) -> AttentionSettings:
    return AttentionSettings(model=str(tiny_path), kv=("hkivi4", "f16"), contexts=(600,), reps=2)


@pytest.fixture
def rows(settings: AttentionSettings, monkeypatch: pytest.MonkeyPatch) -> list[AttentionRow]:
    # mlx-lm's groups of 64 do not fit heads of 16.
    wide = replace(network_of(settings.model), head_dim=64)
    monkeypatch.setattr(attention, "network_of", lambda path: wide)
    monkeypatch.setattr(attention, "machine", lambda: Machine(read_bytes_s=1e9, flops=1e9))
    with Meter(1) as meter:
        return list(attention.run(settings, meter))


def test_each_kernel_reads_what_it_holds(rows: list[AttentionRow]) -> None:
    found = {(row.kernel, row.kv): row for row in rows}
    plain = 3 * 2 * 2 * 600 * 64  # layers, K and V, KV heads, tokens, dims
    assert found["ember", "f16"].bytes_read == 2 * plain
    assert found["MLX fused attention", "float16"].bytes_read == 2 * plain
    # 4 bits, and a scale and a bias of two bytes each (of float32: four) for a group
    q4 = found["mlx-lm quantized attention", "q4"]
    group, width = int(q4.setting.split(",")[0].split()[1]), 4 if "float32" in q4.setting else 2
    assert q4.bytes_read == plain // 2 + plain // group * 2 * width
    assert found["ember", "hkivi4"].bytes_read < found["ember", "f16"].bytes_read
    decoding = found["decode, then attend", "hkivi4"]
    assert decoding.bytes_read == found["ember", "hkivi4"].bytes_read


def test_others_kernels_name_the_settings_tried(rows: list[AttentionRow]) -> None:
    for row in rows:
        if row.kernel == "ember":
            assert not row.setting
            assert not row.tried
        else:
            assert row.setting == next(iter(row.tried))
            assert row.tried[row.setting] == min(row.tried.values())
    quantized = [row for row in rows if row.kernel == "mlx-lm quantized attention"]
    for row in quantized:
        # heads of 64 here, in the dtypes that the device is fast or slow in
        assert {name.split(",")[0] for name in row.tried} == {"group_size 64", "group_size 32"}
    if mx.default_device().type == mx.DeviceType.cpu:
        assert len(quantized[0].tried) == 3
    (table,) = attention_view.tables(rows)
    assert "Tried for mlx-lm quantized attention, q8: group_size" in table.note


def test_heads_that_mlx_lm_does_not_quantize_have_no_row_of_its(
    settings: AttentionSettings,
) -> None:
    """The tiny model's heads of 16 are no whole group."""
    found = attention.kernels(network_of(settings.model), settings)
    assert not any(kernel.name.startswith("mlx-lm") for kernel in found)
    assert all(kernel.makes for kernel in found)


def test_what_is_hopeless_over_few_tokens_is_not_tried_over_more() -> None:
    asked: list[tuple[str, int]] = []

    def make(seconds: float, name: str, context: int) -> tuple[attention.Step, int]:
        asked.append((name, context))
        return lambda: time.sleep(seconds), 1

    kernel = attention.Kernel(
        name="k",
        kv="q8",
        backend="b",
        makes={name: partial(make, 0.4 * (name == "slow"), name) for name in ("a", "slow", "b")},
    )
    tried = kernel.tried(10)
    assert list(tried)[-1] == "slow"
    left = kernel.worth_trying({"a": 1.0, "slow": 4.1, "b": 4.0})
    assert set(left.tried(20)) == {"a", "b"}
    assert [name for name, context in asked if context == 20] == ["a", "b"]
    assert kernel.worth_trying({}) == kernel


def test_another_models_shape(settings: AttentionSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "machine", lambda: Machine(read_bytes_s=1e9, flops=1e9))
    shaped = replace(settings, shape="tinyllama", kv=("f16",), contexts=(40,), reps=1)
    with Meter(1) as meter:
        row = next(attention.run(shaped, meter))
    # 22 layers, K and V, 4 KV heads of 64, 2 bytes
    assert (row.model, row.bytes_read) == ("TinyLlama 1.1B", 22 * 2 * 4 * 64 * 2 * 40)


@pytest.mark.skipif(find_compiler() is None, reason="needs the emulator's compiler")
def test_the_gpu_backend_runs_our_kernels(
    settings: AttentionSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row of a GPU, with the emulator in its place."""

    def fail(*_: object) -> None:
        raise AssertionError("attended in plain MLX")

    network = replace(network_of(settings.model), head_dim=64)
    launch = Emulator()

    def make(plan: LayerPlan, metric: LayerMetric | None) -> GpuTiers:
        decoder, encoder = TierDecoder(launch=launch), TierEncoder(launch=launch)
        return GpuTiers(plan, metric, decoder=decoder, encoder=encoder)

    monkeypatch.setattr("kvcache.config.on_gpu", lambda: True)
    monkeypatch.setattr("kvcache.holding.GpuTiers", make)
    monkeypatch.setattr("kvcache.tiers.memory.attend_tiers", fail)
    step, bytes_read = attention._ember(network, "hkivi4/turbo4u", Backend.GPU, 600)
    step()
    assert bytes_read < 3 * 2 * 2 * 600 * 64 * 2


def test_bandwidth_by_hand(rows: list[AttentionRow]) -> None:
    for row in rows:
        assert row.seconds > 0
        assert row.gb_s == pytest.approx(row.bytes_read / row.seconds / 1e9)
        assert row.share == pytest.approx(row.gb_s)  # of the gigabyte a second above


def test_all_kernels_attend_alike(settings: AttentionSettings) -> None:
    """f16 by ember and by MLX, over the same tokens, give the same vectors."""
    network = replace(network_of(settings.model), head_dim=64)
    caches = attention.filled(network, "f16", Backend.AUTO.resolve(), 600)
    q, scale = attention.queries(network), 1 / math.sqrt(64)
    for cache in caches:
        ours = cache.attend_held(q, scale=scale)
        keys, values = cache.keys().astype(mx.float32), cache.values().astype(mx.float32)
        theirs = mx.fast.scaled_dot_product_attention(q, keys, values, scale=scale)
        assert float(mx.abs(ours - theirs).max()) < 2e-3


def test_the_table_and_the_finding(rows: list[AttentionRow]) -> None:
    (table,) = attention_view.tables(rows)
    assert len(table.rows) == len(rows)
    assert attention_view.findings(rows)[0].startswith("At 600 tokens ember over hkivi4 takes")
    (chart,) = attention_view.charts(rows)
    assert [series.name for series in chart.series][:3] == [
        "ember, hkivi4",
        "ember, f16",
        "decode+attend, hkivi4",
    ]


def test_the_machine_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from app.bench import machine as module

    monkeypatch.setattr(module, "_READ_BYTES", 2**20)
    monkeypatch.setattr(module, "_SIDE", 64)
    machine.cache_clear()
    found = machine()
    assert found is machine()
    assert found.read_bytes_s > 0
    assert found.flops > 0
    machine.cache_clear()


def test_the_first_round_does_not_count() -> None:
    calls: list[int] = []
    assert seconds_of(lambda: calls.append(1), 3) >= 0
    assert len(calls) == 4


def test_rounds_that_others_disturb_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or shares of the machine's bandwidth come out larger than one."""
    from app.bench import machine as module

    monkeypatch.setattr(module, "times_of", lambda _step, _rounds: [7.0, 2.0, 5.0, 3.0, 11.0])
    assert seconds_of(lambda: None, 5) == 2.0
