"""Kernel calls as CUDA: compiled by NVRTC, NVIDIA's run-time compiler, which needs no GPU, or
put on the emulator's runtime.

MLX generates CUDA text only where it has CUDA, so the function around the body
is written here, after mlx/backend/cuda/custom_kernel.cpp: parameters by dtype,
template constants as constexpr, all in a namespace after the header.
"""

import ctypes
import importlib.util
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import mlx.core as mx

from kvcache.gpu.kernel import Call, Constant, Dialect

_TYPES = {
    mx.float32: "float",
    mx.float16: "__half",
    mx.bfloat16: "__nv_bfloat16",
    mx.int32: "int32_t",
    mx.uint32: "uint32_t",
}
_PRELUDE = """
#include <cuda_bf16.h>
#include <cuda_fp16.h>
typedef int int32_t;
typedef unsigned int uint32_t;
#define inf __int_as_float(0x7f800000)
"""
_REPORT = re.compile(
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers(?:.*?(\d+) bytes smem)?",
    re.DOTALL,
)


_INSTRUCTION = 16  # bytes of one, in NVIDIA's machine code since Volta
_BRANCH, _EXIT = 0x947, 0x94D  # their low twelve bits


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What the compiler gave a kernel, per thread; shared is of the thread block, in bytes.

    instructions: of the machine code. loop: those of its longest loop, all inside it.
    """

    registers: int
    stack: int
    spilled: int
    shared: int
    instructions: int
    loop: int


def is_available() -> bool:
    """Whether NVRTC and CUDA's headers are installed (dependency group `nvrtc`)."""
    return bool(_library_path()) and bool(_package("nvidia.cuda_runtime"))


def compile_cuda(
    call: Call, *, architecture: str = "sm_90", registers: int | None = None
) -> Resources:
    """Compile the call's kernel to machine code. Raises RuntimeError with the compiler's words.

    registers: as many as a thread may have, where that is fewer than the architecture's.
    """
    library = _library()
    program = ctypes.c_void_p()
    library.nvrtcCreateProgram(
        ctypes.byref(program), cuda_text(call).encode(), b"kernel.cu", 0, 0, 0
    )
    include = _package("nvidia.cuda_runtime")
    assert include, "check is_available() first"
    # The options with which MLX compiles its kernels.
    options = [
        f"--gpu-architecture={architecture}",
        *("--std=c++17", "--device-as-default-execution-space", f"-I{include / 'include'}"),
        "--ptxas-options=--verbose",
        *([f"--maxrregcount={registers}"] if registers else []),
    ]
    words = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    failed = library.nvrtcCompileProgram(program, len(options), words)
    size = ctypes.c_size_t()
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    code = _machine_code(library, program)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    report = _REPORT.search(log.value.decode())
    if failed or not report:
        raise RuntimeError(f"NVRTC refused {call.kernel.name}:\n{log.value.decode()[:4000]}")
    stack, stores, loads, used, shared = (int(number or 0) for number in report.groups())
    return Resources(
        registers=used,
        stack=stack,
        spilled=stores + loads,
        shared=shared,
        instructions=len(code) // _INSTRUCTION,
        loop=max(_loops(code), default=0),
    )


def _machine_code(library: ctypes.CDLL, program: ctypes.c_void_p) -> bytes:
    """The section of the program's ELF file that holds its one kernel; empty if there is none."""
    size = ctypes.c_size_t()
    library.nvrtcGetCUBINSize(program, ctypes.byref(size))
    elf = ctypes.create_string_buffer(size.value)
    library.nvrtcGetCUBIN(program, elf)
    if size.value == 0:
        return b""
    (sections,) = struct.unpack_from("<Q", elf, 0x28)
    each, count, names_index = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", elf, sections + i * each) for i in range(count)]
    names = headers[names_index][4]
    for name, *_, offset, length in headers:
        if elf.raw[names + name :].startswith(b".text."):
            return elf.raw[offset : offset + length]
    return b""


def _loops(code: bytes) -> Iterator[int]:
    """Instructions of each loop, its inner ones among them.

    What lies behind the last exit is called from loops and comes back; it is no loop itself.
    """
    words = [struct.unpack_from("<QQ", code, at) for at in range(0, len(code), _INSTRUCTION)]
    exits = [i for i, (low, _) in enumerate(words) if low & 0xFFF == _EXIT]
    for low, high in words[: exits[-1]]:
        distance = (high & 0x3FFFF) << 38 | low >> 34 << 8 | low >> 16 & 0xFF  # in words of 4 bytes
        if low & 0xFFF == _BRANCH and distance >> 55:
            yield ((1 << 56) - distance) * 4 // _INSTRUCTION


def cuda_on_cpu(call: Call) -> str:
    """The same text as C++ for the emulator."""
    types = [array.dtype for array in call.inputs] + list(call.dtypes)
    arguments = ", ".join(f"({_TYPES[each]}*)buffers[{i}]" for i, each in enumerate(types))
    return (
        f'#include "cuda_shim.h"\n{cuda_text(call, prelude="")}\n'
        'extern "C" void metal_entry(const MetalThread*, void** buffers) {\n'
        f"  mlx::core::cu::{call.kernel.name}({arguments});\n}}\n"
    )


def cuda_text(call: Call, *, prelude: str = _PRELUDE) -> str:
    """The text that MLX would compile; its own headers are the prelude."""
    kernel = call.kernel
    parameters = [
        f"    const {_TYPES[array.dtype]}* {name}"
        for name, array in zip(kernel.inputs, call.inputs, strict=True)
    ] + [
        f"    {_TYPES[dtype]}* {name}"
        for name, dtype in zip(kernel.outputs, call.dtypes, strict=True)
    ]
    constants = "".join(_constant(name, value) for name, value in call.constants.items())
    return (
        f"{prelude}{kernel.header(Dialect.CUDA)}\nnamespace mlx::core::cu {{\n"
        f"__global__ void {kernel.name}(\n{','.join(parameters)}) {{\n"
        f"{constants}\n{kernel.body}\n}}\n}}\n"
    )


def _constant(name: str, value: Constant) -> str:
    if isinstance(value, mx.Dtype):
        return f"  using {name} = {_TYPES[value]};\n"
    kind = "bool" if isinstance(value, bool) else "int"
    return f"  constexpr {kind} {name} = {str(value).lower()};\n"


def _package(name: str) -> Path | None:
    try:
        found = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return None
    return (
        Path(next(iter(found.submodule_search_locations)))
        if found and found.submodule_search_locations
        else None
    )


def _library_path() -> Path | None:
    folder = _package("nvidia.cuda_nvrtc")
    return next(iter(sorted((folder / "lib").glob("libnvrtc.so.*"))), None) if folder else None


@lru_cache
def _library() -> ctypes.CDLL:
    path = _library_path()
    assert path, "check is_available() first"
    return ctypes.CDLL(str(path))
