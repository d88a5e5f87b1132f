"""The flags of the cache, and the command that measures it."""

import json
from pathlib import Path

import numpy as np
import pytest

from app import cli, options
from app.divergence import Divergence, diverge, join
from kvcache import CacheConfig, make_prompt_cache
from kvcache.config import DEFAULT_KV
from models import load
from models.text.thinking import DEFAULT_BUDGET

RUN = ["run", "--raw", "--prompt", "ba ce di", "--max-tokens", "90", "--json"]


def _run(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, object]:
    assert cli.run([str(argument) for argument in arguments]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_defaults_are_the_librarys() -> None:
    assert f"{CacheConfig().keys}/{CacheConfig().values}" == DEFAULT_KV
    assert options.DEFAULT_THINK_BUDGET == DEFAULT_BUDGET


def test_flags_reach_the_cache(capsys: pytest.CaptureFixture[str], tiny_path: Path) -> None:
    flags = ["--kv", "h8/q4", "--hot", "20", "--sinks", "3", "--block", "8", "--ctx", "60"]
    found = _run(capsys, *RUN, "-m", tiny_path, *flags)
    cache = found["cache"]
    assert isinstance(cache, dict)
    assert found["kv"] == "h8/q4"
    # Three sinks, twenty hot tokens and an unfinished block leave room for three blocks.
    assert found["window"] == 3 + 3 * 8 + 20 + 7 + 0
    assert (cache["sink"], cache["cold"]) == (3, 24)
    assert 20 <= cache["hot"] < 28
    assert cache["evicted"] == cache["total"] - cache["sink"] - cache["cold"] - cache["hot"] > 0


def test_a_budget_in_bytes_is_kept(capsys: pytest.CaptureFixture[str], tiny_path: Path) -> None:
    found = _run(capsys, *RUN, "-m", tiny_path, "--kv-budget", "20KiB", "--block", "8")
    cache = found["cache"]
    assert isinstance(cache, dict)
    assert cache["allocated_bytes"] <= 20 * 1024
    assert cache["evicted"] > 0


def test_a_kept_prefix_is_never_let_go(capsys: pytest.CaptureFixture[str], tiny_path: Path) -> None:
    flags = ["--keep", "11", "--block", "8", "--hot", "8", "--ctx", "50"]
    cache = _run(capsys, *RUN, "-m", tiny_path, *flags)["cache"]
    assert isinstance(cache, dict)
    assert cache["sink"] == 11


def test_the_system_prompt_is_kept(capsys: pytest.CaptureFixture[str], tiny_path: Path) -> None:
    chat = ["run", "--prompt", "ba", "--max-tokens", "100", "--json", "-m", tiny_path]
    tiers = ["--block", "8", "--hot", "8", "--ctx", "120"]
    system = "ce di fo gu ba ce di fo gu"
    kept = _run(capsys, *chat, *tiers, "--system", system, "--keep", "system")["cache"]
    plain = _run(capsys, *chat, *tiers, "--keep", "system")["cache"]
    assert isinstance(kept, dict)
    assert isinstance(plain, dict)
    ids = load(tiny_path).tokenizer.encode(system, add_special=False)
    assert kept["sink"] >= plain["sink"] + len(ids) - 1


def test_a_cache_that_keeps_everything_diverges_by_nothing(tiny_path: Path) -> None:
    model = load(tiny_path).model
    ids = [(7 * i + 3) % 600 for i in range(100)]
    config = CacheConfig(keys="f16", values="f16", hot=8, block=8)
    one, other = make_prompt_cache(model, config), make_prompt_cache(model, config)
    found = join(list(diverge(model, one, other, ids, chunk=8, skip=21)))
    assert len(found.kl) == 99 - 21
    assert not found.kl.any()
    assert found.agrees.all()
    np.testing.assert_array_equal(found.nll, found.reference_nll)


def test_figures_of_a_divergence_by_hand() -> None:
    found = Divergence(
        nll=np.array([1.0, 3.0]),
        reference_nll=np.array([1.0, 1.0]),
        kl=np.array([0.1, 0.3]),
        agrees=np.array([True, False]),
    ).as_dict()
    assert found["ppl"] == pytest.approx(np.e**2)
    assert found["reference_ppl"] == pytest.approx(np.e)
    assert found["kld_mean"] == pytest.approx(0.2)
    assert found["kld_median"] == pytest.approx(0.2)
    assert found["kld_p999"] == pytest.approx(0.2998)
    assert (found["top1"], found["tokens"]) == (0.5, 2)


def test_perplexity_keeps_the_contract(
    capsys: pytest.CaptureFixture[str], tiny_path: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("ba ce di fo gu " * 40)
    command = ["perplexity", text, "-m", tiny_path, "--skip", "40", "--hot", "8", "--block", "8"]
    found = _run(capsys, *command, "--kv", "q2", "--json", "--tokens", "150")
    assert set(found) >= {"ppl", "kld_mean", "kld_median", "kld_p999", "top1", "tokens", "bits"}
    assert found["tokens"] == 150 - 1 - 40
    # Head dimension 16: two float16 a token and group of 16.
    assert found["bits"] == 2 + 2
    assert isinstance(found["kld_mean"], float)
    assert found["kld_mean"] > 1e-6
    finer = _run(capsys, *command, "--kv", "h8", "--json", "--tokens", "150")["kld_mean"]
    assert isinstance(finer, float)
    assert finer < found["kld_mean"] / 20
    assert cli.run([str(argument) for argument in [*command, "--tokens", "30"]]) == 1
    assert "the text has 30 tokens" in capsys.readouterr().err
    assert cli.run(["perplexity", str(tmp_path / "absent.txt"), "-m", str(tiny_path)]) == 1
    assert "cannot read the text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kv", "reason"),
    [
        ("turbo3p", "no GPU kernel reads codec turbo3p of head dimension 16"),
        ("kivi4", "the GPU kernels do not run here"),
    ],
    ids=["unread", "not compiled"],
)
def test_plain_mlx_on_a_gpu_is_said(
    kv: str,
    reason: str,
    capsys: pytest.CaptureFixture[str],
    tiny_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A GPU as far as ember can tell, on which no kernel compiles."""
    monkeypatch.setattr("kvcache.config.on_gpu", lambda: True)
    flags = [*RUN, "-m", str(tiny_path), "--kv", kv, "--hot", "20", "--block", "8"]
    assert cli.run(flags) == 0
    out, said = capsys.readouterr()
    assert json.loads(out)["backend"] == "reference"
    assert json.loads(out)["cache"]["plain"]
    notes = [line for line in said.splitlines() if "plain MLX" in line]
    assert len(notes) == 1
    assert f"attention runs in plain MLX, slowly: {reason}" in notes[0]
    assert cli.run([*flags, "--backend", "gpu"]) == 1
    assert reason in capsys.readouterr().err


def test_doctor_says_what_the_gpu_kernels_do_not_read(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "gpu_kernels" not in _run(capsys, "doctor", "--json")
    monkeypatch.setattr("kvcache.config.on_gpu", lambda: True)
    said = _run(capsys, "doctor", "--json")["gpu_kernels"]
    assert said == "all codecs but turbo4p, turbo3p, turbo2p, which run in plain MLX"
