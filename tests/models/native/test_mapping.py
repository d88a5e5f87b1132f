"""Files that are cut while they are mapped: zeros and a mark, never a signal.

Each case is a process of its own, whose end tells.
"""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

# 64 pages of other bytes each; `read` looks at one of each page, from the last on.
SETUP = """
import ctypes, faulthandler, mmap, os, signal, sys, threading
import numpy as np
from models.native.kernels import kernels

PAGE, PAGES = mmap.PAGESIZE, 64

def write(name):
    made = np.repeat(np.arange(1, PAGES + 1, dtype=np.uint8), PAGE)
    path = os.path.join(sys.argv[1], name)
    made.tofile(path)
    return path

def mapped(path):
    file = os.open(path, os.O_RDONLY)
    mapping = kernels().map(file, os.path.getsize(path))
    os.close(file)
    return mapping

def read(data):
    return [int(data[page * PAGE + 5]) for page in reversed(range(PAGES))][::-1]

def cut(path, pages):
    os.truncate(path, pages * PAGE - 100)

def left(pages):
    return [*range(1, pages + 1), *[0] * (PAGES - pages)]

def foreign(path):
    file = os.open(path, os.O_RDONLY)
    return np.frombuffer(mmap.mmap(file, 0, access=mmap.ACCESS_READ), np.uint8)

WHOLE = left(PAGES)
path = write("a")
"""
CASES = {
    "nothing happens": """
mapping = mapped(path)
assert read(mapping.data) == WHOLE and not mapping.is_damaged
assert not mapping.data.flags.writeable
""",
    "it is cut and the rest stays": """
mapping = mapped(path)
assert read(mapping.data) == WHOLE
cut(path, 7)
assert read(mapping.data) == left(7) and mapping.is_damaged
os.truncate(path, PAGE * PAGES)
assert mapping.is_damaged
""",
    "it is cut to nothing": """
data = mapped(path).data
os.truncate(path, 0)
assert read(data) == left(0)
""",
    "the one that is cut is marked, not the others": """
paths = [path, write("b"), write("c")]
mappings = [mapped(each) for each in paths]
cut(paths[1], 3)
for mapping, pages in zip(mappings, (PAGES, 3, PAGES), strict=True):
    assert read(mapping.data) == left(pages)
assert [mapping.is_damaged for mapping in mappings] == [False, True, False]
del mapping, mappings[1]
assert read(mappings[1].data) == WHOLE
cut(paths[2], 9)
assert read(mappings[1].data) == left(9) and mappings[1].is_damaged
""",
    "many threads read it": """
mapping = mapped(path)
cut(path, 2)
found = []
threads = [threading.Thread(target=lambda: found.append(read(mapping.data))) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert found == [left(2)] * 8 and mapping.is_damaged
""",
    "the pool's threads read it": """
from models.gguf.tensor_types import TensorType
from models.native.packed import Weight
path = os.path.join(sys.argv[1], "big")
rows = np.full((997, 4096), 0.5, np.float32)
rows.tofile(path)
mapping = mapped(path)
weight = Weight(mapping.data.reshape(997, -1), kind=TensorType.F32)
x = np.ones((1, 4096), np.float32)
assert (kernels().linear(x, weight) == 2048).all() and not mapping.is_damaged
os.truncate(path, 400 * 4096 * 4)
found = kernels().linear(x, weight)
assert (found[0, :400] == 2048).all() and (found[0, 400:] == 0).all() and mapping.is_damaged
""",
    "few regions are made": """
mapping = mapped(path)
os.truncate(path, 0)
data = mapping.data
def regions():
    return len(open("/proc/self/maps").readlines()) if sys.platform == "linux" else 0
pages = np.random.default_rng(1).permutation(PAGES).tolist()
before = regions()
for page in pages:
    assert data[page * PAGE] == 0
    assert regions() <= before + 4
""",
    "its arrays keep it": """
data = mapped(path).data[3 * PAGE :]
cut(path, 5)
assert [int(data[0]), int(data[PAGE]), int(data[2 * PAGE])] == [4, 5, 0]
""",
    "faulthandler is there before": """
faulthandler.enable()
mapping = mapped(path)
cut(path, 7)
assert read(mapping.data) == left(7)
""",
    "faulthandler comes after": """
mapping = mapped(path)
faulthandler.enable()
assert not mapping.is_damaged
cut(path, 7)
assert read(mapping.data) == left(7)
""",
}
FOREIGN = {
    "another mapping": """
mapping = mapped(path)
other = write("b")
data = foreign(other)
os.truncate(other, 0)
print(data[0])
""",
    "somebody sends the signal": """
mapping = mapped(path)
os.kill(os.getpid(), signal.SIGBUS)
""",
    "a mapping that is gone": """
mapping = mapped(path)
where = mapping.data.__array_interface__["data"][0]
data = mapping.data
del mapping, data
os.truncate(path, 0)
os.truncate(path, PAGE * PAGES)
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
file = os.open(path, os.O_RDONLY)
fixed = 0x10 if sys.platform == "linux" else 0
got = libc.mmap(ctypes.c_void_p(where), ctypes.c_size_t(PAGE), mmap.PROT_READ,
                mmap.MAP_SHARED | fixed, file, ctypes.c_long(0))
assert got == where
os.truncate(path, 0)
print(ctypes.c_uint8.from_address(where).value)
""",
}


def _run(case: str, folder: Path, before: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SETUP + before + case, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("case", CASES)
def test_a_file_may_be_cut(case: str, tmp_path: Path) -> None:
    done = _run(CASES[case], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("case", FOREIGN)
def test_faults_that_are_not_ours_end_the_process(case: str, tmp_path: Path) -> None:
    done = _run(FOREIGN[case], tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGBUS, "", "")


@pytest.mark.parametrize("case", FOREIGN)
@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
def test_they_go_to_who_was_there_before(case: str, late: bool, tmp_path: Path) -> None:
    enable = "faulthandler.enable()\n"
    late_case = CASES["nothing happens"] + enable + "mapping.is_damaged\n"
    done = _run(FOREIGN[case], tmp_path, late_case if late else enable)
    assert (done.returncode, done.stdout) == (-signal.SIGBUS, "")
    assert "Fatal Python error: Bus error" in done.stderr
