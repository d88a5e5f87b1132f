"""The kernels' threads, where the system gives fewer than asked for."""

import subprocess
import sys
from pathlib import Path

from kvcache.native import build
from kvcache.native.build import Sources

ROOT = Path(build.__file__).parents[2]
ASKED = 907
# Room for some stacks, and then no more: the same as a limit on threads, but for root too.
SCRIPT = f"""
import resource, sys
import numpy as np, psutil
from kvcache.native import build
from kvcache.native.library import SOURCES, Library
from tests.kvcache.native.conftest import compiled_as
compiled = compiled_as(SOURCES, *sys.argv[1:])
build.load(compiled)
stack, _ = resource.getrlimit(resource.RLIMIT_STACK)
room = psutil.Process().memory_info().vms + 9 * min(stack, 1 << 26) + (1 << 26)
resource.setrlimit(resource.RLIMIT_AS, (room, resource.RLIM_INFINITY))
kernels = Library({ASKED}, compiled)
data = np.arange(64 * 70001, dtype=np.uint8)
print(kernels.threads, kernels.read(data) - int(data[::64].astype(np.int64).sum()))
kernels.close()
"""


def test_where_no_more_threads_are_given_fewer_do_the_work(compiled: Sources) -> None:
    command = [sys.executable, "-c", SCRIPT, compiled.processor, *compiled.flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    threads, error = map(int, done.stdout.split())
    assert error == 0
    assert 1 <= threads <= ASKED
    # Other systems take no notice of the limit.
    assert threads < ASKED or sys.platform != "linux"
