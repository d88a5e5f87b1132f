"""Damaged files are refused in one line, or answer; no signal, nothing else, ends it."""

import subprocess
import sys

import pytest

from models.gguf.tensor_types import TensorType

CASES = {
    "header": ("header", "12"),
    "weights": ("weights", str(3 * len(TensorType))),
    "weights that are decoded": (
        *("weights", str(len(TensorType))),
        *("--seed", "500", "--backend", "reference"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_whatever_is_damaged(case: str) -> None:
    arguments = CASES[case]
    command = [sys.executable, "-m", "tests.models.damaged", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr[-3000:] or done.stdout[-300:]
    outcomes = [line.split(" ")[1] for line in done.stdout.splitlines()]
    assert len(outcomes) == int(arguments[1])
    assert set(outcomes) <= {"answers", "refused:"}
    assert "refused:" in outcomes
