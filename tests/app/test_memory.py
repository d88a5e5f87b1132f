"""What fits in memory: figures, refusals before anything is read, and numbers without bound."""

import json
import mmap
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from app import cli, memory, options
from app.bench.figures.shapes import LLAMA_2_7B
from app.memory import Fit, Memory, Need, TooLargeError, admit
from app.model_list import Cost, ListedModel, fit
from app.options import LoadOptions
from app.service.contract import ModelInfo
from app.service.live_service import LiveService
from app.tui.app import ChatApp
from kvcache import Backend, CacheConfig, resolve
from kvcache import config as cache_config
from models.gguf.file import GGUFFile
from models.gguf.tensor_types import TensorType
from models.network.config import NetworkConfig
from tests.app.terminal import ROOT
from tests.app.tui.conftest import Talk, on_screen
from tests.gguf_factory import (
    LlamaShape,
    every_matrix,
    sentencepiece_tokenizer,
    write_hollow_llama,
)
from tests.patience import within

GB = 10**9
HUGE = LlamaShape(layers=80, width=8192, ffn=28672, heads=64, kv_heads=8, vocab=611, context=4096)
MIDDLE = Memory(most=24 * GB, now=20 * GB)

ON_100_GB = """
import sys
from app import cli, memory
memory.memory = lambda: memory.Memory(most=10**11, now=10**11)
sys.exit(cli.run(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def hollow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 137 GB that takes a few kilobytes of disk."""
    path = tmp_path_factory.mktemp("models") / "huge.gguf"
    write_hollow_llama(
        path,
        config=HUGE,
        types=every_matrix(TensorType.F16),
        tokenizer_metadata=sentencepiece_tokenizer(HUGE.vocab),
    )
    assert path.stat().st_size > 130 * GB
    assert path.stat().st_blocks * 512 < 1 << 20
    return path


@pytest.fixture
def middling(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 24 GB."""
    monkeypatch.setattr(memory, "memory", lambda: MIDDLE)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("ba ce di fo gu " * 400)
    return path


def _model(**more: int) -> NetworkConfig:
    """1 MB of f16 keys and values for each token."""
    fields = {"layers": 32, "hidden": 4096, "ffn": 11008, "heads": 64, "kv_heads": 64}
    fields |= {"head_dim": 128, "context": 8192, "rope_dims": 128} | more
    return NetworkConfig(norm_eps=1e-5, rope_base=10000.0, **fields)


# -- refused before it is read --


@pytest.mark.usefixtures("middling")
@pytest.mark.parametrize(
    "command",
    [
        ["run", "--prompt", "ba"],
        ["chat", "--plain"],
        ["perplexity"],
        ["bench", "speed"],
        ["bench", "--quick"],
    ],
    ids=" ".join,
)
def test_a_file_of_137_gb_is_refused_at_once(
    command: list[str], hollow: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(text)] if command == ["perplexity"] else []
    # Some hundredths. Of this process: a first run compiles kernels, in others.
    with within(2):
        assert cli.run([*command, *given, "-m", str(hollow)]) == 1
    out, err = capsys.readouterr()
    assert not out
    (said,) = [line for line in err.splitlines() if "error" in line]
    assert "does not fit in memory: weights 136.9 GB, cache " in said
    assert "this machine has 24.0 GB for it" in said
    assert "take a smaller model, or --force" in said


def test_who_lacks_a_compiler_is_told_why_weights_take_more_than_the_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Where the kernels would hold them as they are, and the reference, as floats, cannot."""
    path = tmp_path / "packed.gguf"
    write_hollow_llama(
        path,
        config=HUGE,
        types=every_matrix(TensorType.Q4_0),
        tokenizer_metadata=sentencepiece_tokenizer(HUGE.vocab),
    )
    monkeypatch.setattr(memory, "memory", lambda: Memory(most=100 * GB, now=100 * GB))
    command = ["run", "--prompt", "ba", "-m", str(path), "--backend"]
    for each in (command, ["bench", "speed", *command[3:]]):
        assert cli.run([*each, "reference"]) == 1
        (said,) = capsys.readouterr().err.splitlines()
        assert "does not fit in memory: weights 273.8 GB, cache " in said
        assert said.endswith("; the reference backend holds weights as floats")
    environment = os.environ | {"CXX": "no-such-compiler"}
    done = subprocess.run(
        [sys.executable, "-c", ON_100_GB, *command, "auto"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    (said,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert "holds weights as floats, and runs here because of: no C++ compiler (no-such" in said


@pytest.mark.usefixtures("middling", "home")
@on_screen
async def test_the_chat_says_what_does_not_fit(hollow: Path) -> None:
    service = LiveService(CacheConfig(backend=Backend.REFERENCE))
    with pytest.raises(TooLargeError, match=r"weights 273\.8 GB.*24\.0 GB"):
        list(service.load(str(hollow)))
    app = ChatApp(service, model=str(hollow))
    async with app.run_test(size=(100, 30)) as pilot:
        chat = Talk(app, service, pilot)
        await chat.until(lambda: "the model could not be loaded" in chat.shown)
        shown = " ".join(chat.shown.replace("│", "").split())
        assert "weights 273.8 GB, cache 0.5 GB, prompt step 0.2 GB" in shown
        assert "this machine has 24.0 GB for it" in shown
        assert "--force" in shown
    service.close()


def test_force_goes_on(hollow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the check the file's lack of sense is found: what is read is a hole."""
    with GGUFFile(hollow) as file:
        model = NetworkConfig.from_metadata(file.metadata)
    monkeypatch.setattr(memory, "memory", lambda: MIDDLE)
    found = admit(CacheConfig(), model, 137 * GB, force=True)
    assert found.config == CacheConfig()
    (told,) = found.notes
    assert told.startswith("memory is tight: weights 137.0 GB")


def test_force_is_a_flag_of_all_that_load(
    tiny_path: Path,
    text: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On a machine with nothing to give, even the tiny model must be forced."""
    monkeypatch.setattr(memory, "memory", lambda: Memory(most=1000, now=1000))
    model = ["-m", str(tiny_path)]
    commands = [
        ["run", "--prompt", "ba", "--max-tokens", "2", *model],
        ["perplexity", str(text), "--tokens", "300", "--hot", "8", "--block", "8", *model],
        ["bench", "attention", "--kv", "f16", "--contexts", "40", "--reps", "1", *model],
    ]
    for command in commands:
        assert cli.run(command) == 1
        assert "does not fit in memory" in capsys.readouterr().err
    for command in commands[:2]:
        assert cli.run([*command, "--force"]) == 0
        assert "ember: memory is tight: weights 0.0 GB" in capsys.readouterr().err
    service = LiveService(CacheConfig(backend=Backend.REFERENCE), load=LoadOptions(force=True))
    *_, info = service.load(str(tiny_path))
    assert isinstance(info, ModelInfo)
    assert any("memory is tight" in note for note in info.notes)
    service.close()


@pytest.mark.usefixtures("middling")
@pytest.mark.parametrize(
    "config",
    [
        CacheConfig(max_tokens=200_000, beyond_context=True),
        CacheConfig(budget=43 * GB, beyond_context=True),
        CacheConfig(max_tokens=60_000, beyond_context=True, keys="f16", values="f16"),
    ],
    ids=["tokens", "bytes", "f16"],
)
def test_a_cache_that_cannot_fit_is_refused(config: CacheConfig) -> None:
    with pytest.raises(TooLargeError, match="take a smaller --ctx or --kv-budget") as told:
        admit(config, _model(), 2 * GB)
    assert "weights 2.0 GB, cache" in str(told.value)
    assert admit(config, _model(), 2 * GB, force=True).config == config


@pytest.mark.usefixtures("middling")
def test_a_window_nobody_asked_for_shrinks_to_what_fits() -> None:
    model = _model(context=1_000_000)
    found = admit(CacheConfig(), model, 4 * GB)
    window = found.config.max_tokens
    assert window is not None
    assert 60_000 < window < 80_000  # 19.5 GB at 4.375 bits of 16, 1 MB a token
    need = memory.need_of(found.config, model, 4 * GB)
    assert 23 * GB < need.total + memory.PROGRAM_BYTES <= 24 * GB
    assert f"the window is {window} tokens, not 1000000" in found.notes[0]
    # Beside weights that leave no room for the smallest window nothing shrinks.
    with pytest.raises(TooLargeError, match="a smaller --ctx"):
        admit(CacheConfig(), model, 235 * GB // 10)


@pytest.mark.parametrize("gpu", [True, False])
def test_a_7b_chat_has_its_whole_window_on_a_mac_of_8_gb(
    gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    wired = int((8 << 30) * memory.WIRED_SHARE)
    monkeypatch.setattr(memory, "on_gpu", lambda: gpu)
    monkeypatch.setattr(memory, "memory", lambda: Memory(most=wired, now=wired))
    weights = LLAMA_2_7B.weight_bytes
    assert admit(CacheConfig(), LLAMA_2_7B, weights) == memory.Admitted(config=CacheConfig())
    longer = CacheConfig(max_tokens=5000, beyond_context=True)
    assert not admit(longer, LLAMA_2_7B, weights).notes


# -- one notion --


def test_fits_tight_and_too_large_by_hand() -> None:
    def at(total: int, *, now: int = 20 * GB) -> Fit:
        need = Need(weights=total - 3, cache=2, prompt=1)
        assert need.total == total
        return need.fit(Memory(most=24 * GB, now=now))

    program = memory.PROGRAM_BYTES
    assert at(20 * GB - program) is Fit.FITS
    assert at(20 * GB - program + 1) is Fit.TIGHT
    assert at(24 * GB) is Fit.TIGHT
    assert at(24 * GB + 1) is Fit.TOO_LARGE
    assert at(24 * GB, now=30 * GB) is Fit.TIGHT
    assert memory.cache_room(24 * GB, 10 * GB) == 14 * GB - program
    assert memory.cache_room(24 * GB, 24 * GB) == 0


@pytest.mark.parametrize("weights", [5, 19, 23, 24, 30])
def test_the_list_of_models_says_what_a_load_will(
    weights: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "memory", lambda: MIDDLE)
    model = _model(kv_heads=8, heads=8, context=memory.LEAST_WINDOW)
    config = CacheConfig(keys="f16", values="f16")
    listed = ListedModel(spec="a", size=1, about="", path=Path("a"))
    least_bytes = resolve(config, model.shape).max_bytes
    shown = fit(listed, Cost(weight_bytes=weights * GB, least_bytes=least_bytes), MIDDLE)
    try:
        notes = admit(config, model, weights * GB).notes
        loads = Fit.TIGHT if notes else Fit.FITS
    except TooLargeError:
        loads = Fit.TOO_LARGE
    assert shown is loads


def test_a_file_that_is_not_here_is_judged_by_its_size() -> None:
    listed = ListedModel(spec="a", size=25 * GB, about="", path=None)
    assert fit(listed, None, MIDDLE) is Fit.TOO_LARGE
    assert fit(replace(listed, size=None), None, MIDDLE) is None
    assert fit(replace(listed, size=GB), None, MIDDLE) is Fit.FITS


# -- many prompts at once --


def test_a_batch_that_cannot_fit_is_refused(
    tiny_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(memory, "memory", lambda: Memory(most=40_000_000, now=40_000_000))
    monkeypatch.setattr(memory, "PROGRAM_BYTES", 0)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("ba ce di\n" * 211, encoding="utf-8")
    flags = ["--max-tokens", "2", "--json", "-m", str(tiny_path)]
    command = ["run", "--prompts-file", str(prompts), *flags]
    assert cli.run(command) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "error: 211 prompts together do not fit in memory: weights 0.0 GB, cache 0." in err
    assert "give fewer at once, or --force" in err
    assert cli.run([*command, "--force"]) == 0
    assert len(json.loads(capsys.readouterr().out)["results"]) == 211
    prompts.write_text("ba ce di\n" * 3, encoding="utf-8")
    assert cli.run(command) == 0


# -- what the machine has --


def _groups(folder: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    own = folder / "own"
    own.write_text(f"{line}\n")
    monkeypatch.setattr(memory, "_CGROUPS", folder)
    monkeypatch.setattr(memory, "_OWN_CGROUP", own)


@pytest.mark.parametrize(
    ("line", "place", "names"),
    [
        ("0::/", ".", ("max", "current")),
        ("0::/a.slice/b", "a.slice", ("max", "current")),
        ("0::/not/here", ".", ("max", "current")),
        ("7:memory:/docker/x", "memory/docker/x", ("limit_in_bytes", "usage_in_bytes")),
    ],
)
def test_a_container_has_what_its_group_may_take(
    line: str,
    place: str,
    names: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _groups(tmp_path, monkeypatch, line)
    folder = tmp_path / place
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"memory.{names[0]}").write_text("700000000\n")
    (folder / f"memory.{names[1]}").write_text("500000000\n")
    (folder / "memory.stat").write_text("anon 1\ninactive_file 90000000\nactive_file 10000000\n")
    monkeypatch.setattr(memory, "_own", lambda: 30_000_000)
    found = memory.memory()
    assert found.most == 700_000_000
    assert found.now == 700_000_000 - 400_000_000 + 30_000_000


def test_pages_of_a_mapped_file_are_free_already(tmp_path: Path) -> None:
    size = 64 << 20
    with (tmp_path / "file").open("w+b") as file:
        file.truncate(size)
        with mmap.mmap(file.fileno(), size) as mapped:
            own, resident = memory._own(), memory.resident()
            assert not mapped[:: mmap.PAGESIZE].strip(b"\0")
            on_linux = sys.platform == "linux"
            assert memory.resident() - resident > size / 2
            assert (memory._own() - own < size / 8) is on_linux


def test_groups_without_limits_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _groups(tmp_path, monkeypatch, "0::/")
    for name, text in (("max", "max"), ("current", "5"), ("stat", "anon 1")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert memory.memory().most == psutil.virtual_memory().total
    monkeypatch.setattr(memory, "_OWN_CGROUP", tmp_path / "absent")
    found = memory.memory()
    assert 0 < found.now <= found.most == memory.installed()


def test_a_gpu_has_what_it_may_wire(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "on_gpu", lambda: True)
    wired = {"max_recommended_working_set_size": 1_000_003}
    monkeypatch.setattr("mlx.core.device_info", lambda: wired)
    assert memory.memory().most == 1_000_003
    monkeypatch.setattr("mlx.core.device_info", lambda: {"device_name": "none"})
    assert memory.memory().most == memory.installed()


# -- numbers without bound --

DIGITS = "9" * 20


@pytest.mark.parametrize("flag", ["--ctx", "--hot", "--sinks", "--block", "--keep"])
@pytest.mark.parametrize(
    "number", [str(2**31), DIGITS, "9" * 5000, "-1", "1e9"], ids=["31", "20", "5000", "-1", "1e9"]
)
def test_numbers_of_the_cache_are_bounded(
    flag: str, number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["run", "--prompt", "ba", f"{flag}={number}"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert flag in said
    assert len(said) < 200


@pytest.mark.parametrize("number", [2**31 - 1, 10**9])
@pytest.mark.parametrize("flag", ["--ctx", "--hot", "--sinks", "--block", "--keep"])
def test_the_largest_numbers_end_in_an_answer_or_a_line(
    flag: str,
    number: int,
    tiny_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(memory, "memory", lambda: MIDDLE)
    command = ["run", "--prompt", "ba", "--max-tokens", "2", "-m", str(tiny_path)]
    for more in ([], ["--beyond-context"]):
        code = cli.run([*command, flag, str(number), *more])
        err = capsys.readouterr().err
        assert code in (0, 1)
        assert "Traceback" not in err
        assert code == 0 or err.count("ember: error: ") == 1


@pytest.mark.parametrize(
    "size", [DIGITS, "9" * 400, "9" * 5000, "9" * 300 + "GiB", "1e9", "-1"], ids=len
)
def test_absurd_budgets_end_in_a_line(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["run", "--prompt", "ba", f"--kv-budget={size}"]) == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert "size" in said


def test_a_large_budget_is_no_more_than_the_context(
    tiny_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", "--prompt", "ba", "--max-tokens", "2", "--json", "-m", str(tiny_path)]
    assert cli.run([*command, "--kv-budget", "8000000000GiB"]) == 0
    assert json.loads(capsys.readouterr().out)["window"] <= 128
    assert cli.run([*command, "--kv-budget", "8000000000GiB", "--beyond-context"]) == 1
    assert "does not fit in memory" in capsys.readouterr().err


def test_the_bounds_are_one() -> None:
    assert options.MOST_TOKENS == cache_config.MOST_TOKENS
    assert CacheConfig(max_tokens=options.MOST_TOKENS).max_tokens == 2**31 - 1
