"""How many instructions a thread of a kernel executes, counted in NVIDIA's intermediate code.

NVRTC compiles the kernel to PTX, which has about as many instructions as machine code. One
thread is followed through it. Whole numbers are computed, as they say where it goes; floating
point numbers are not known, nor what lies in memory, but for arrays of whole numbers that the
kernel is given. Branches on what is not known are not taken; a loop must end by what is. The lanes
of a simdgroup vote yes the first time that they are asked at a place, and no ever after: so the
running softmax raises its tops for the first tokens, and hardly again. A simdgroup executes what
its busiest lane does: lane 0, for which all loops over tokens run.
"""

import ctypes
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from kvcache.gpu.kernel import Call
from kvcache.gpu.shape import TILE
from tests.metal import cuda

_MOST = 2_000_000  # instructions: more is an endless loop
_BUFFER = 1 << 40  # of addresses between one parameter and the next
_LABEL = re.compile(r"^(\$\w+):$")
_INSTRUCTION = re.compile(r"^(?:@(?P<not>!?)(?P<guard>%p\d+) )?(?P<op>[\w.:]+)\s*(?P<rest>[^;]*);$")
_ADDRESS = re.compile(r"^\[(?P<base>[%\w]+)(?:\+?(?P<offset>-?\d+))?\]$")
_PARAMETER = re.compile(r"_param_(\d+)$")
# Bits, of others than 32.
_SIZES = {"b16": 16, "u16": 16, "s16": 16, "b64": 64, "u64": 64, "s64": 64}

Value = int | None


def executed_by(call: Call) -> int:
    """Instructions of all simdgroups of a launch, each one's for all of its lanes as one."""
    program = Program.of(call)
    counts = (each // size for each, size in zip(call.grid, call.threadgroup, strict=True))
    groups = product(*(range(count) for count in counts))
    firsts = range(0, int(np.prod(call.threadgroup)), TILE)
    return sum(
        program.executed(Thread(group=group, index=first)) for group in groups for first in firsts
    )


@dataclass(frozen=True, kw_only=True)
class Thread:
    """Which one: its threadgroup's place in the grid, and its own in the threadgroup."""

    group: tuple[int, ...]
    index: int


@dataclass(frozen=True, kw_only=True)
class _Line:
    """guard, wanted: a predicate's register and the value with which this is executed."""

    op: str
    operands: tuple[str, ...]
    guard: str | None = None
    wanted: bool = True


@dataclass(frozen=True, kw_only=True)
class Program:
    """A kernel's PTX. integers: inputs of whole numbers, by the parameter's index."""

    lines: tuple[_Line, ...]
    labels: Mapping[str, int]
    integers: Mapping[int, npt.NDArray[np.int64]]
    threads: int

    @classmethod
    def of(cls, call: Call) -> "Program":
        """Compile a call's kernel. Raises RuntimeError where NVRTC does not."""
        lines: list[_Line] = []
        labels = {}
        text = _compile(cuda.cuda_text(call))
        for raw in text[text.index("{\n", text.index(".entry")) :].splitlines():
            words = raw.split("//")[0].replace("\t", " ").strip()
            if label := _LABEL.match(words):
                labels[label[1]] = len(lines)
            elif found := _INSTRUCTION.match(words):
                lines.append(_line(found))
        integers = {
            index: np.array(array.flatten(), np.int64)
            for index, array in enumerate(call.inputs)
            if array.dtype == mx.int32
        }
        return cls(
            lines=tuple(lines),
            labels=labels,
            integers=integers,
            threads=int(np.prod(call.threadgroup)),
        )

    def executed(self, thread: Thread) -> int:
        """Instructions until the thread ends."""
        registers: dict[str, Value] = {
            "%tid.x": thread.index,
            **{f"%ctaid.{axis}": at for axis, at in zip("xyz", thread.group, strict=True)},
            "%ntid.x": self.threads,
        }
        asked = set()
        at = count = 0
        while at < len(self.lines):
            line, at, count = self.lines[at], at + 1, count + 1
            if count > _MOST:
                raise RuntimeError(f"a thread that executes more than {_MOST} instructions")
            name = line.op.split(".")[0]
            if line.guard is not None and registers.get(line.guard) != int(line.wanted):
                ends = name == "bra" and self.labels[line.operands[-1]] < at
                if ends and registers.get(line.guard) is None:
                    raise RuntimeError(f"a loop whose end is not known: {line}")
                continue
            if name in ("ret", "exit"):
                break
            if name == "bra":
                at = self.labels[line.operands[-1]]
            elif name == "vote":
                registers[line.operands[0]] = int(at not in asked)
                asked.add(at)
            elif line.operands:
                registers[line.operands[0]] = self._result(line, registers)
        return count

    def _result(self, line: _Line, registers: Mapping[str, Value]) -> Value:
        name, *kinds = line.op.split(".")
        if name == "ld":
            return self._loaded(kinds, line.operands[1], registers)
        compute = _COMPUTE.get(name)
        floats = any(kind.startswith(("f", "bf")) for kind in kinds)
        values = [_value(word, registers) for word in line.operands[1:]]
        if compute is None or floats or any(value is None for value in values):
            return None
        if name == "cvt":  # the type that comes out is named first
            kinds = kinds[:1]
        known = [_wrapped(value, kinds) for value in values if value is not None]
        found = compute(kinds, *known)
        return _wrapped(found, kinds, wide="wide" in kinds)

    def _loaded(self, kinds: list[str], word: str, registers: Mapping[str, Value]) -> Value:
        """A parameter is its buffer's address; of memory, what lies in arrays of whole numbers."""
        found = _ADDRESS.match(word)
        assert found, f"an address of an unknown form: {word}"
        if "param" in kinds:
            parameter = _PARAMETER.search(found["base"])
            return (int(parameter[1]) + 1) * _BUFFER if parameter else None
        base = registers.get(found["base"])
        if base is None or "global" not in kinds:
            return None
        index, offset = divmod(base + int(found["offset"] or 0), _BUFFER)
        array = self.integers.get(index - 1)
        return None if array is None or offset % 4 else int(array[offset // 4])


def _line(found: re.Match[str]) -> _Line:
    operands = tuple(
        re.sub(r"[{}\s]", "", word) for word in re.split(r",(?![^{]*})", found["rest"])
    )
    return _Line(
        op=found["op"],
        operands=tuple(word for word in operands if word),
        guard=found["guard"],
        wanted=not found["not"],
    )


def _value(word: str, registers: Mapping[str, Value]) -> Value:
    if word.startswith("%"):
        return registers.get(word)
    return int(word) if re.fullmatch(r"-?\d+", word) else None


def _wrapped(value: int, kinds: list[str], *, wide: bool = False) -> int:
    """As so many bits hold it, with a sign or without."""
    if "pred" in kinds:
        return value & 1
    size = 64 if wide else _SIZES.get(kinds[-1] if kinds else "", 32)
    value &= (1 << size) - 1
    signed = any(kind.startswith("s") for kind in kinds)
    return value - (1 << size) if signed and value >> (size - 1) else value


def _compare(kinds: list[str], a: int, b: int) -> int:
    found = {"eq": a == b, "ne": a != b, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}
    return int(found[kinds[0]])


def _divided(_kinds: list[str], a: int, b: int) -> int:
    """Towards zero."""
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


def _multiplied(kinds: list[str], a: int, b: int) -> int:
    """hi: the upper half of the product, by which compilers divide."""
    return a * b >> _SIZES.get(kinds[-1], 32) if "hi" in kinds else a * b


# What whole numbers become; what is not here is not known.
_COMPUTE: dict[str, Callable[..., int]] = {
    "mov": lambda _, a: a,
    "cvta": lambda _, a: a,
    "cvt": lambda _, a: a,
    "add": lambda _, a, b: a + b,
    "sub": lambda _, a, b: a - b,
    "mul": _multiplied,
    "mad": lambda kinds, a, b, c: _multiplied(kinds, a, b) + c,
    "div": _divided,
    "rem": lambda kinds, a, b: a - b * _divided(kinds, a, b),
    "min": lambda _, a, b: min(a, b),
    "max": lambda _, a, b: max(a, b),
    "neg": lambda _, a: -a,
    "not": lambda _, a: ~a,
    "and": lambda _, a, b: a & b,
    "or": lambda _, a, b: a | b,
    "xor": lambda _, a, b: a ^ b,
    "shl": lambda _, a, b: a << b,
    "shr": lambda _, a, b: a >> b,
    "setp": _compare,
    "selp": lambda _, a, b, p: a if p else b,
}


@lru_cache(maxsize=16)
def _compile(source: str) -> str:
    """The PTX of CUDA text."""
    library, program = cuda._library(), ctypes.c_void_p()
    library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, 0, 0)
    headers = cuda._package("nvidia.cuda_runtime")
    assert headers, "check cuda.is_available() first"
    options = [
        *("--gpu-architecture=compute_90", "--std=c++17"),
        *("--device-as-default-execution-space", f"-I{headers / 'include'}"),
    ]
    words = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    if library.nvrtcCompileProgram(program, len(options), words):
        raise RuntimeError("NVRTC refused the kernel")
    size = ctypes.c_size_t()
    library.nvrtcGetPTXSize(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    library.nvrtcGetPTX(program, text)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return text.value.decode()
