import argparse
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app import cli
from app.engine import Engine, Request
from app.events import Event
from app.sampling import Sampling
from models.gguf.file import GGUFFile
from tests.app.conftest import TINY, Ember, write_tiny
from tests.models.samples import CONTENT, put_ollama
from tests.patience import patience

RUN = ["run", "--raw", "--prompt", "ba ce di", "--max-tokens", "5"]


def test_run_answers_on_stdout_alone(ember: Ember, tiny_path: Path) -> None:
    result = ember(*RUN, "-m", tiny_path)
    assert result.code == 0
    assert result.out.strip()
    assert "answer 5 tokens" in result.err
    assert ember(*RUN, "-m", tiny_path).out == result.out


def test_run_json_keeps_the_contract(ember: Ember, tiny_path: Path) -> None:
    flags = ["--hot-dtype", "f32", "--ctx", "100", "--backend", "reference", "--kv", "f16"]
    result = ember(*RUN, "-m", tiny_path, "--json", *flags)
    found = json.loads(result.out)
    assert result.code == 0
    assert found["generated_tokens"] == len(found["tokens"]) == 5
    assert (found["finish_reason"], found["backend"], found["kv"]) == ("length", "reference", "f16")
    assert found["window"] == 100
    assert found["prompt_tokens"] > 3
    assert found["cache"]["total"] == found["prompt_tokens"] + 4
    # 3 layers * 2 (K, V) * 2 KV heads * 16 dims * 4 bytes
    assert found["cache"]["sink_bytes"] == 768 * 4
    assert found["cache"]["hot_bytes"] == 768 * (found["cache"]["total"] - 4)
    for key in ("ttft_s", "prefill_tps", "decode_tps", "peak_rss_bytes"):
        assert found[key] > 0


def test_prompts_file_answers_each_line_as_run_does(
    ember: Ember, tiny_path: Path, tmp_path: Path
) -> None:
    prompts = ["ba ce di", "fo", "gu ha je ki lo ma nu"]
    file = tmp_path / "prompts.txt"
    file.write_text("\n\n".join(prompts) + "\n")
    flags = ["-m", tiny_path, "--raw", "--max-tokens", "6", "--hot-dtype", "f32", "--json"]
    batch = json.loads(ember("run", "--prompts-file", file, *flags).out)["results"]
    alone = [json.loads(ember("run", "--prompt", prompt, *flags).out) for prompt in prompts]
    assert [row["tokens"] for row in batch] == [row["tokens"] for row in alone]
    assert [row["text"] for row in batch] == [row["text"] for row in alone]
    plain = ember("run", "--prompts-file", file, *flags[:-1])
    assert [line for line in plain.out.splitlines() if line.startswith("> ")] == [
        f"> {prompt}" for prompt in prompts
    ]


def test_a_bare_model_reads_stdin(
    ember: Ember, tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("ba ce di\n"))
    piped = ember(tiny_path, "--raw", "--max-tokens", "5")
    assert (piped.code, piped.out) == (0, ember(*RUN, "-m", tiny_path).out)


@pytest.mark.parametrize("flag", ["--plain", "--continue"])
def test_a_bare_flag_of_the_chat_is_the_chat_s(
    flag: str, ember: Ember, tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("ba\nce\n"))
    result = ember(flag, "-m", tiny_path, "--max-tokens", "4")
    assert result.code == 0
    assert sum("answer 4 tokens" in line for line in result.err.splitlines()) == 2


def test_chat_remembers_the_conversation(
    ember: Ember, tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "ba ce\n/stats\ndi\n/nonsense\n/reset\nba ce\n/quit\nnever read\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    result = ember("chat", "-m", tiny_path, "--max-tokens", "4")
    assert result.code == 1  # by /nonsense
    first, second, third = (line for line in result.err.splitlines() if "answer" in line)
    assert "reused" not in first
    # The question, and the answer as it was generated; its last token is in no cache.
    held = int(first.split()[1]) + 4 - 1
    assert f"({held} reused)" in second
    assert first.split("·")[0].split(",")[0] == third.split(" (")[0]
    assert "no command /nonsense" in result.err
    assert " hot, 0 cold, 0 evicted; " in result.out


def test_chat_survives_a_full_window(
    ember: Ember, tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{'ba ' * 130}\n/reset\nba\n"))
    result = ember("chat", "-m", tiny_path, "--max-tokens", "4")
    assert result.code == 1  # the first was not answered
    assert "but the window holds 128" in result.err
    assert "answer 4 tokens" in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt", "  \n"], "the prompt is empty"),
        (["--prompt", "x", "--raw", "--system", "y"], "--system has no place"),
        (["--prompt", "x", "--temp", "hot"], "--temp: got 'hot', expected a number"),
        (["--prompt", "x", "--temp", "-1"], "--temp: got -1, expected a number, 0 to 100"),
        (["--prompt", "x", "--temp", "nan"], "--temp: got nan"),
        (["--prompt", "x", "--top-p", "0"], "--top-p: got 0"),
        (["--prompt", "x", "--max-tokens", "0"], "--max-tokens: got 0"),
        (["--prompt", "x", "--kv", "q0"], "--kv: got codec 'q0', expected qN of 2, 3,"),
        (["--prompt", "x", "--kv-budget", "12 parsecs"], "--kv-budget: got size '12 parsecs'"),
        (["--prompt", "x", "--kv-budget", ""], "--kv-budget: got size ''"),
        (["--prompt", "x", "--ctx", "9", "--kv-budget", "1MiB"], "not allowed with"),
        (["--prompt", "x", "--no-such-flag"], "unrecognized arguments: --no-such-flag"),
        (["--prompt", "x", "--pretokenizer", "nosuch"], "--pretokenizer: got pre-tokenizer"),
        (["--prompt", "x", "--chat-template", "nosuch"], "no chat template 'nosuch': expected"),
        (["--prompt", "x", "--chat-template", "/"], "cannot read the chat template /: Is a dir"),
        (["--prompts-file", "nosuch"], "cannot read the prompts file nosuch: No such file"),
        (["--prompts-file", os.devnull], f"the prompts file {os.devnull} is empty"),
        (["--prompt", "x", "one", "-m", "other"], "got two prompts, 'one' and --prompt"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(ember: Ember, arguments: list[str], message: str) -> None:
    result = ember("run", *arguments)
    assert result.code == 2
    assert message in result.error_line()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "./no/such.gguf"], "no/such.gguf"),
        (["-m", "no-such-name"], "no-such-name"),
        (["-m", "TINY", "--kv-budget", "100"], "does not hold 4 pinned tokens"),
        (["-m", "TINY", "--ctx", "3"], "a window of 3 tokens does not hold 4"),
        (["-m", "TINY", "--backend", "gpu"], "needs a Metal or CUDA device"),
    ],
)
def test_failures_are_one_line_and_exit_1(
    ember: Ember, arguments: list[str], message: str, tiny_path: Path
) -> None:
    given = [str(tiny_path) if argument == "TINY" else argument for argument in arguments]
    result = ember(*RUN, *given)
    assert result.code == 1
    assert message in result.error_line()


def test_another_architecture_is_one_line_that_names_the_file(ember: Ember, tmp_path: Path) -> None:
    import gguf

    path = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(path, "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for command in (["run", "--prompt", "x", "-m"], ["inspect"]):
        result = ember(*command, path)
        assert result.code == 1
        message = f"ember: error: {path}: the architecture 'mamba' is not supported; "
        assert result.error_line().startswith(message)
    result = ember("tokenize", "-m", path, "x")
    assert result.error_line().startswith(f"ember: error: {path}: tokenizer.ggml.tokens is missing")


def test_a_missing_compiler_is_told(tiny_path: Path) -> None:
    root = Path(cli.__file__).parent.parent
    command = [sys.executable, "-m", "app", *RUN, "-m", str(tiny_path)]
    environment = os.environ | {"CXX": "no-such-compiler"}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=root, env=environment, check=True
    )
    assert "ember: no C++ compiler (no-such-compiler): install one" in done.stderr


def test_truncate_is_asked_for(ember: Ember, tiny_path: Path) -> None:
    long = ["run", "--raw", "--prompt", "ba " * 130, "--max-tokens", "5", "-m", tiny_path]
    refused = ember(*long)
    assert refused.code == 1
    assert "but the window holds 128" in refused.error_line()
    cut = ember(*long, "--truncate")
    assert cut.code == 0
    assert "prompt cut to 123 tokens" in cut.err


def test_tokenize_shows_ids_and_pieces(ember: Ember, tiny_path: Path) -> None:
    found = json.loads(ember("tokenize", "-m", tiny_path, "ba ce", "--json").out)
    assert found["ids"][0] == 1
    assert len(found["ids"]) == len(found["tokens"])
    plain = json.loads(ember("tokenize", "-m", tiny_path, "ba ce", "--json", "--no-special").out)
    assert plain["ids"] == found["ids"][1:]
    lines = ember("tokenize", "-m", tiny_path, "ba ce").out.splitlines()
    assert [int(line.split()[0]) for line in lines] == found["ids"]


def test_what_a_file_recommends_is_for_the_chat_and_not_for_a_run(
    ember: Ember, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {
        "general.sampling.temp": float("nan"),
        "general.sampling.top_k": 3,
        "general.sampling.min_p": 0.25,
    }
    path = write_tiny(tmp_path / "tiny.gguf", changes=told)
    result = ember("inspect", path, "--json")
    assert "ember: general.sampling.temp is nan, expected a finite number; it is not" in result.err
    usual = json.loads(result.out)["sampling"]["usual"]
    assert (usual["temp"], usual["top_k"], usual["min_p"]) == (0.7, 3, 0.25)
    asked: list[Sampling] = []
    generate = Engine.generate

    def noted(self: Engine, request: Request, *rest: Any) -> Iterator[Event]:
        asked.append(request.sampling)
        return generate(self, request, *rest)

    monkeypatch.setattr(Engine, "generate", noted)
    for flags in ((), ("--temp", "0.5", "--top-k", "0")):
        monkeypatch.setattr(sys, "stdin", io.StringIO("ba ce\n"))
        assert ember("chat", "--plain", "-m", path, "--max-tokens", "2", *flags).code == 0
    assert ember("run", "-m", path, "-p", "ba ce", "--max-tokens", "2").code == 0
    assert asked == [
        Sampling(temperature=0.7, top_k=3, min_p=0.25),
        Sampling(temperature=0.5, min_p=0.25),
        Sampling(),
    ]


def test_doctor_tells_what_will_run(ember: Ember) -> None:
    found = json.loads(ember("doctor", "--json").out)
    assert found["backend"] in ("cpu", "gpu")
    assert found["memory_bytes"] > 2**30
    assert found["mlx"].count(".") == 2
    assert "models folder" in ember("doctor").out


def test_help_and_version(ember: Ember) -> None:
    assert "Exit codes: 0 ok" in ember("--help").out
    assert ember("--version").out.startswith("ember ")
    for command in cli._COMMANDS:
        assert f"ember {command}" in ember(command, "--help").out


def test_examples_of_help_are_taken() -> None:
    (commands,) = (
        action for action in cli.parser()._actions if isinstance(action, argparse._SubParsersAction)
    )
    lines = [line for each in commands.choices.values() for line in (each.epilog or "").split("\n")]
    examples = [shlex.split(line, comments=True) for line in lines if "ember " in line]
    assert len(examples) > 15
    for words in examples:
        given = [word for word in words[words.index("ember") + 1 :] if not word.startswith("<")]
        assert cli._parsed(given).run


def test_a_python_without_the_packages_is_told_where_they_are() -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-m", "app", "run", "--prompt", "x"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "has no mlx" in done.stderr
    assert "source .venv/bin/activate" in done.stderr


def test_ctrl_c_keeps_the_partial_answer(tiny_path: Path) -> None:
    command = [sys.executable, "-m", "app", *RUN[:-1], "1000000", "-m", str(tiny_path)]
    flags = ["--ctx", "1000000", "--beyond-context"]
    root = Path(cli.__file__).parent.parent
    process = subprocess.Popen(
        command + flags, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=root
    )
    assert process.stdout is not None
    first = os.read(process.stdout.fileno(), 1)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=patience(60))
    assert process.returncode == 130, err
    assert len(first + out) > 1
    assert b"Traceback" not in err
    assert b"answer" in err


def test_a_closed_pipe_is_no_traceback(tiny_path: Path) -> None:
    root = Path(cli.__file__).parent.parent
    command = f"{sys.executable} -m app inspect {tiny_path} | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.startswith(str(tiny_path))
    assert done.stderr == ""


GUESS = (
    "ember: this file has no chat template; ChatML is a guess, "
    "`ember run --raw` sends text as it is\n"
)


def test_a_guessed_chat_template_is_told_once(
    ember: Ember, tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = ember("run", "-p", "ba", "-m", tiny_path, "--max-tokens", "3", "--json")
    assert json.loads(result.out)["generated_tokens"] == 3
    assert result.err == GUESS
    assert GUESS not in ember(*RUN, "-m", tiny_path).err
    monkeypatch.setattr(sys, "stdin", io.StringIO("ba\nce\n"))
    chat = ember("chat", "-m", tiny_path, "--max-tokens", "3")
    assert chat.err.startswith(GUESS)
    assert chat.err.count(GUESS) == 1


def test_a_known_chat_template_needs_no_word(ember: Ember, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "named.gguf", changes={"general.name": "TinyLlama"})
    result = ember("run", "-p", "ba", "-m", path, "--max-tokens", "3", "--json")
    assert (result.code, result.err) == (0, "")


def test_a_window_that_is_not_as_asked_is_told(ember: Ember, tiny_path: Path) -> None:
    capped = ember(*RUN, "-m", tiny_path, "--ctx", "500")
    assert "ember: the window is 128 tokens, not 500" in capped.err
    beyond = ember(*RUN, "-m", tiny_path, "--ctx", "500", "--beyond-context")
    assert "ember: a window of 451 tokens is beyond the 128" in beyond.err
    assert "window" not in ember(*RUN, "-m", tiny_path, "--ctx", "100", "--json").err


@pytest.mark.parametrize(
    "flags", [[], ["--temp", "0.8", "--seed", "3"], ["--json"], ["--backend", "reference"]]
)
def test_an_overflow_in_the_network_is_no_empty_answer(
    ember: Ember, tmp_path: Path, flags: list[str]
) -> None:
    """Weights near the largest float32 are finite, what comes of them is not."""
    path = write_tiny(tmp_path / "loud.gguf")
    with GGUFFile(path) as file:
        norm = file.tensors["output_norm.weight"]
    data = bytearray(path.read_bytes())
    data[norm.offset : norm.offset + norm.nbytes] = np.full(TINY.width, 3e38, "<f4").tobytes()
    path.write_bytes(data)
    result = ember(*RUN, "-m", path, *flags)
    assert result.code == 1
    assert "the network gave NaN or infinity" in result.error_line()


def test_a_raw_prompt_that_begins_with_bos_has_one(ember: Ember, tiny_path: Path) -> None:
    found = [
        json.loads(ember("run", "--raw", "--prompt", prompt, "-m", tiny_path, *flags).out)
        for prompt in ("ba ce", "<s>ba ce")
        for flags in [["--max-tokens", "2", "--json"]]
    ]
    assert found[0]["prompt_tokens"] == found[1]["prompt_tokens"] == 3
    assert found[0]["tokens"] == found[1]["tokens"]


def test_ls_names_models_that_lack_their_weights(ember: Ember, home: Path) -> None:
    root = home / ".ollama/models"
    put_ollama(root, "registry.example/library/phi/latest").unlink()
    left_over = put_ollama(root, "registry.example/library/gone/1b", CONTENT * 2)
    (root / "manifests/registry.example/library/gone/1b").unlink()
    result = ember("ls")
    assert result.code == 0
    assert f"ollama:{left_over.name[:19]} " in result.out
    assert "ollama:phi" not in result.out
    assert result.err.startswith("ember: ollama:phi:latest has a manifest, but its weights ")
    assert result.err.endswith("`ollama pull phi:latest` fetches them\n")
    refused = ember("rm", f"ollama:{left_over.name[:19]}")
    assert refused.code == 1
    assert "no name leads to it; delete it by hand" in refused.error_line()


def test_a_command_begins_no_threads_that_nobody_uses(tiny_path: Path) -> None:
    # numpy's, one for each processor, spin as they begin.
    program = (
        "from app import cli",
        f"assert cli.run(['inspect', {str(tiny_path)!r}]) == 0",
        "import sys, threading, numpy, psutil",
        "print(psutil.Process().num_threads(), threading.active_count(), file=sys.stderr)",
    )
    command = [sys.executable, "-c", "\n".join(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    all_threads, pythons = done.stderr.split()
    assert all_threads == pythons
