"""`make metal-check` from end to end where no GPU is: the emulator launches, sizes are tiny."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import jsonschema
import mlx.core as mx
import numpy as np
import pytest

import models
from kvcache import Backend
from kvcache.gpu.kernel import Call, Dialect, Launcher
from models.gguf.tensor_types import TensorType
from tests.gguf_factory import LlamaShape, every_matrix, sentencepiece_tokenizer, write_llama
from tests.metal import cases, cuda, test_encode, test_prefill, test_product, test_rows
from tests.metal.build import find_compiler
from tests.metal.check import correctness, run, tokens
from tests.metal.check.report import ROWS, Report, schema
from tests.metal.check.rows import CorrectnessRow
from tests.metal.check.run import Device, check
from tests.metal.check.sizes import Matrix, Shape, Sizes
from tests.metal.check.timing import Timer, linking
from tests.metal.emulator import Emulator
from tests.metal.generated import generate
from tests.metal.lint import lint

pytestmark = pytest.mark.skipif(
    find_compiler() is None, reason="needs clang++ 18 or newer on x86-64 Linux"
)
QUICK = Timer(seconds=0.0)
SIZES = Sizes(
    shapes=(Shape(name="tiny", kv_heads=2, group=3, dim=64),),
    tokens=(390, 520),
    kernel_tokens=(390,),
    new=(2,),
    threadgroups=(16, 4),
    matrices=(Matrix(name="tiny", rows=264, columns=256),),
    types=(TensorType.Q4_K, TensorType.Q8_0),
    tokens_of_products=(1, 9),
    copied=2**16,
    depths=(0, 90),
    window=80,
    generated=2,
    timer=QUICK,
)
SOME = (
    *("tiers: cold of one", "tiers: nothing held", "prefill: hot only"),
    *("product: a part", "rows: Q8_0, by id"),
)
SECONDS = dict.fromkeys(ROWS, 1e9)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Heads of 32, which groups of 32 fit and those of 64 do not."""
    shape = LlamaShape(layers=2, width=96, ffn=160, heads=3, kv_heads=1, vocab=611, context=512)
    path = tmp_path_factory.mktemp("check") / "tiny.gguf"
    write_llama(
        path,
        config=shape,
        types=every_matrix(TensorType.Q8_0),
        tokenizer_metadata=sentencepiece_tokenizer(shape.vocab),
        seed=5,
    )
    return str(path)


def device(model: str, launch: Launcher) -> Device:
    cases = correctness.cases()
    return Device(
        launch=launch,
        backend=Backend.REFERENCE,
        sizes=replace(SIZES, model=model),
        seconds=SECONDS,
        cases={name: cases[name] for name in SOME},
    )


@pytest.fixture(scope="module")
def whole(
    model: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, Report, dict[str, Any]]:
    report = Report(file=tmp_path_factory.mktemp("whole") / "found.json")
    code = check(device(model, Emulator()), report, list(ROWS))
    return code, report, json.loads(report.file.read_text())


def of(document: dict[str, Any], section: str) -> list[dict[str, Any]]:
    return [row for row in document["rows"] if row["section"] == section]


def test_every_section_gives_rows_that_hold_the_schema(
    whole: tuple[int, Report, dict[str, Any]],
) -> None:
    code, report, document = whole
    jsonschema.validate(document, schema())
    assert code == 0
    assert report.notes == {}
    assert set(document["seconds"]) == {row["section"] for row in document["rows"]} == set(ROWS)
    assert not document["interrupted"]


def test_right_cases_are_right(whole: tuple[int, Report, dict[str, Any]]) -> None:
    rows = of(whole[2], "correctness")
    assert [row["case"] for row in rows] == list(SOME)
    assert all(row["right"] and row["error"] <= row["most"] for row in rows)


def test_each_launch_is_timed_by_itself(whole: tuple[int, Report, dict[str, Any]]) -> None:
    rows = of(whole[2], "kernels")
    kernels = [row["kernel"] for row in rows]
    assert {"cold", "merge"} < set(kernels)
    assert len(set(kernels)) == len(kernels)
    for row in rows:
        assert row["bytes"] > 0
        assert row["gb_s"] == pytest.approx(row["seconds"] and row["bytes"] / row["seconds"] / 1e9)
    reached = max(row["gb_s"] for row in of(whole[2], "bandwidth"))
    assert rows[0]["share"] == pytest.approx(rows[0]["gb_s"] / reached)


def test_products_are_beside_mlx(whole: tuple[int, Report, dict[str, Any]]) -> None:
    rows = of(whole[2], "products")
    assert [(row["type"], row["tokens"]) for row in rows] == [
        (kind, tokens) for tokens in (1, 9) for kind in ("Q4_K", "Q8_0")
    ]
    reached = max(row["gb_s"] for row in of(whole[2], "bandwidth"))
    for row, each in zip(rows, (144, 8 * 34) * 2, strict=True):
        assert row["bytes"] == 264 * each
        assert row["times"] == pytest.approx(row["mlx_seconds"] / row["seconds"])
        assert row["share"] == pytest.approx(row["bytes"] / row["seconds"] / 1e9 / reached)


def test_one_thing_is_varied_at_a_time(whole: tuple[int, Report, dict[str, Any]]) -> None:
    rows = of(whole[2], "attention")
    assert [(row["tokens"], row["new"], row["threadgroups"]) for row in rows] == [
        *((390, 1, 0), (520, 1, 0)),
        *((390, 2, 0), (520, 1, 16), (520, 1, 4)),
    ]
    for row in rows:
        assert row["times"] == pytest.approx(row["f16_seconds"] / row["seconds"])
        # Of 2 heads of 64: 4 pinned and more than 256 hot tokens of 512 bytes, and blocks.
        assert 260 * 512 < row["cache_bytes"] < row["tokens"] * 512


def test_mlx_lm_is_beside_ember_at_every_depth(
    whole: tuple[int, Report, dict[str, Any]],
) -> None:
    rows = of(whole[2], "tokens")
    each = [
        ("mlx-lm", "KVCache", ""),
        ("mlx-lm", "QuantizedKVCache 8", "group_size 32"),
        ("mlx-lm", "QuantizedKVCache 4", "group_size 32"),
        ("ember", "hkivi4/turbo4u", ""),
        ("ember", "f16", ""),
    ]
    found = [(row["engine"], row["kv"], row["setting"]) for row in rows]
    assert found == [*each, *each, ("ember", "hkivi4/turbo4u", "window 80")]
    for row in rows:
        assert row["tokens_s"] > 0
        assert row["kv_bytes"] > 0
    assert (rows[0]["times"], rows[5]["times"]) == (1, 1)
    assert rows[1]["times"] == pytest.approx(rows[1]["tokens_s"] / rows[0]["tokens_s"])
    # Two layers, one head of 32: held tokens, six generated ones, and one that is queued.
    assert rows[9]["kv_bytes"] == 2 * 2 * 32 * 2 * 97


def test_what_is_pasted_has_every_table(whole: tuple[int, Report, dict[str, Any]]) -> None:
    text = whole[1].markdown()
    assert text.count("\n| ---") == len(ROWS)
    assert "WRONG" not in text
    assert "| tiers | 2 | 0 | " in text
    assert "| ember | hkivi4/turbo4u | window 80 | 90 | " in text


@dataclass(frozen=True, kw_only=True)
class Faulty:
    """An emulator whose `cold` kernel is refused, and whose `merge` is off by a little."""

    emulator: Emulator = field(default_factory=Emulator)

    def __call__(self, call: Call) -> list[mx.array]:
        if call.kernel.stem == "cold":
            raise ValueError("Thread group size (128) is greater than allowed (64).\nmore")
        outputs = self.emulator(call)
        return [each + 0.1 for each in outputs] if call.kernel.stem == "merge" else outputs


def test_what_is_wrong_is_shown_and_fails(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report(file=tmp_path / "found.json")
    code = check(device(model, Faulty()), report, ["correctness", "kernels"])
    document = json.loads(report.file.read_text())
    jsonschema.validate(document, schema())
    refused, off, right, *_ = of(document, "correctness")
    assert code == 1
    assert refused["problem"] == "Thread group size (128) is greater than allowed (64)."
    assert (off["problem"], off["right"], right["right"]) == ("", False, True)
    assert off["error"] == pytest.approx(0.1, abs=1e-3)
    assert document["notes"]["kernels"].startswith("ended: Thread group size (128)")
    text = capsys.readouterr().out
    assert "**WRONG**" in text
    assert "| tiers: nothing held | differs | 0.100 | " in text


def test_nan_is_wrong_and_json(model: str, tmp_path: Path) -> None:
    def nothing(call: Call) -> list[mx.array]:
        pairs = zip(call.shapes, call.dtypes, strict=True)
        return [mx.zeros(shape, dtype) / 0 for shape, dtype in pairs]

    report = Report(file=tmp_path / "found.json")
    assert check(device(model, nothing), report, ["correctness"]) == 1
    rows = of(json.loads(report.file.read_text()), "correctness")
    assert (rows[0]["error"], rows[0]["right"]) == (None, False)


def test_ctrl_c_keeps_what_was_done(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the second case, once the first is in the file."""
    report = Report(file=tmp_path / "found.json")
    found = device(model, Emulator())

    def interrupted(_launch: Launcher) -> correctness.Outcome:
        assert len(json.loads(report.file.read_text())["rows"]) == 1
        raise KeyboardInterrupt

    cases = {SOME[0]: found.cases[SOME[0]], "here": interrupted}
    code = check(replace(found, cases=cases), report, ["correctness", "bandwidth"])
    document = json.loads(report.file.read_text())
    jsonschema.validate(document, schema())
    assert code == 130
    assert document["interrupted"]
    assert [row["case"] for row in document["rows"]] == [SOME[0]]
    assert "| tiers | 1 | 0 | " in capsys.readouterr().out


def test_a_section_ends_with_its_time(model: str, tmp_path: Path) -> None:
    report = Report(file=tmp_path / "found.json")
    seconds = SECONDS | {"correctness": 0.0, "bandwidth": 0.0}
    found = replace(device(model, Emulator()), seconds=seconds, whole=())
    check(found, report, ["correctness", "bandwidth"])
    assert len(report.rows["correctness"]) == len(report.rows["bandwidth"]) == 1
    assert report.notes["correctness"].startswith("cut off after ")
    assert report.notes["correctness"].endswith(
        f": 1 of {len(SOME)} cases, the default configuration's all among them"
    )
    assert re.fullmatch(r"cut off after \d+ s", report.notes["bandwidth"])


def test_the_default_configuration_is_checked_whatever_time_it_takes(
    model: str, tmp_path: Path
) -> None:
    report = Report(file=tmp_path / "found.json")
    found = replace(device(model, Emulator()), seconds=SECONDS | {"correctness": 0.0})
    check(replace(found, whole=SOME[:2]), report, ["correctness"])
    assert len(report.rows["correctness"]) == 2


def test_the_default_configuration_comes_first() -> None:
    names, default = list(correctness.cases()), correctness.of_default()
    assert set(names[: len(default)]) == default
    assert {"tiers: window moves", "turn: half-split", "shape: D128 G1 L1"} <= default
    assert {"prefill: all tiers", "codec: hkivi5", "codec: q4"} & default == {"prefill: all tiers"}
    kinds = {name.partition(":")[0] for name in default}
    assert kinds == {"tiers", "turn", "window", "shape", "prefill", "encode", "product", "rows"}


def test_all_sections_end_within_five_minutes() -> None:
    assert set(run._MOST_SECONDS) == set(ROWS)
    assert sum(run._MOST_SECONDS.values()) <= 280


def test_what_a_load_says_is_in_the_table(model: str, tmp_path: Path) -> None:
    report = Report(file=tmp_path / "found.json")
    told = "matrices are decoded to 16-bit floats, of Q6_K"
    loaded = replace(models.load(model), notes=(told, "and more"))
    with mock.patch.object(tokens, "load", return_value=loaded):
        check(device(model, Emulator()), report, ["tokens"])
    assert report.notes["tokens"] == f"{told}; and more"
    assert told in report.markdown()


def test_a_model_that_is_not_here_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = Report(file=tmp_path / "found.json")
    check(device(str(tmp_path / "no.gguf"), Emulator()), report, ["bandwidth", "tokens"])
    assert report.notes["tokens"].startswith("left out: ")
    assert list(report.rows) == ["bandwidth"]


def test_without_a_gpu_one_line_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main([]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "MLX sees no GPU here: run this on a Mac" in err


def test_main_runs_what_was_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[dict[str, float], list[str]]] = []

    def checked(found: Device, report: Report, names: list[str]) -> int:
        asked.append((found.seconds, names))
        return 0

    monkeypatch.setattr(run, "on_gpu", lambda: True)
    monkeypatch.setattr(run, "check", checked)
    assert run.main(["--only", "attention", "--out", str(tmp_path / "a.json"), "--no-limit"]) == 0
    assert run.main([]) == 0
    assert asked[0] == (dict.fromkeys(ROWS, float("inf")), ["bandwidth", "attention"])
    assert asked[1] == (run._MOST_SECONDS, list(ROWS))
    for words, said in (
        (["--only", "speed"], "got section 'speed', expected some of correctness"),
        (["--out", str(tmp_path / "no" / "a.json")], "but there is no folder"),
    ):
        with pytest.raises(SystemExit):
            run.main(words)
        assert said in capsys.readouterr().err


# -- the clock --


def test_a_chain_is_waited_for_once_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[int] = []
    made = 0
    wait: Any = mx.eval

    def waiting(*arrays: Any) -> None:
        waits.append(made)
        wait(*arrays)

    def step(now: mx.array) -> mx.array:
        nonlocal made
        made += 1
        return now + 1

    monkeypatch.setattr(mx, "eval", waiting)
    Timer(seconds=1e9).chained(step, mx.zeros(3))
    # The first array, one call, two to see how long they take; then three rounds of the most.
    assert np.diff(waits).tolist() == [1, 2, 512, 512, 512]


@pytest.mark.parametrize("dtype", [mx.int32, mx.float16, mx.bfloat16, mx.float32], ids=str)
def test_the_link_passes_its_input_on(dtype: mx.Dtype) -> None:
    """Whatever came before: the kernel that is timed gets what it got."""
    small, before = mx.arange(41).astype(dtype), mx.full((3,), 7.5, dtype)
    call = linking(small, before)
    for dialect in Dialect:
        (after,) = Emulator(dialect=dialect)(call)
        assert after.dtype == dtype
        assert after.tolist() == small.tolist()
    assert lint(generate(call)) == []


@pytest.mark.skipif(not cuda.is_available(), reason="needs the dependency group nvrtc")
def test_the_link_is_cuda() -> None:
    call = linking(mx.arange(41).astype(mx.float16), mx.zeros(9))
    assert cuda.compile_cuda(call).spilled == 0


def test_all_cases_of_the_emulator_are_checked() -> None:
    names = {
        *cases.ALL,
        *(f"prefill: {name}" for name in test_prefill.CASES),
        *(f"encode: {name}" for name in test_encode.ALL),
        *(f"product: {name}" for name in test_product.CASES),
        *(f"rows: {name}" for name in test_rows.CASES),
    }
    assert correctness.cases().keys() == names
    assert len(names) > 150


def rows_of(checks: dict[str, correctness.Check]) -> Iterator[CorrectnessRow]:
    return correctness.run(Emulator(), checks)


def test_an_error_above_what_is_allowed_is_wrong() -> None:
    ones = np.ones(3)
    checks: dict[str, correctness.Check] = {
        "a": lambda _: (np.array([1.0, 1.0, 1.02]), ones, 0.03),
        "b": lambda _: (np.array([1.0, 1.0, 1.04]), ones, 0.03),
    }
    assert [row.right for row in rows_of(checks)] == [True, False]
