"""No kernel reads past a weight: the mapping may end there. Wherever it lies, it gives the same."""

import subprocess
import sys

from kvcache.native.build import Sources
from models.gguf.tensor_types import TensorType


def test_no_byte_outside_a_weight_is_read(compiled: Sources) -> None:
    names = [kind.name for kind in TensorType]
    told = f"{compiled.processor} {' '.join(compiled.flags)}"
    command = [sys.executable, "-m", "tests.models.native.edges", told]
    done = subprocess.run([*command, *names], capture_output=True, text=True, check=False)
    said = done.stdout.splitlines()[-1:], done.stderr
    assert (done.returncode, *said) == (0, ["all well"], "")
