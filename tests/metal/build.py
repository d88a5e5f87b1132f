"""Compiles a generated kernel for this processor, with clang and the shim.

Two changes are made to the text, both to what MLX wrote around it or to storage:
the `[[kernel]]` mark goes, and a declaration in threadgroup memory becomes a
static variable. Results are kept by hash for later runs.
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from enum import Enum
from functools import lru_cache
from pathlib import Path

from tests.metal.generated import Generated, Parameter

_FOLDER = Path(__file__).parent
_COMPILERS = ("clang++-19", "clang++-20", "clang++-18", "clang++")
_OLDEST = 18
_PRELUDE = '#include "shim.h"\n'
# Without a look at the times of the files that it was built from.
_AS_BUILT = ("-Xclang", "-fno-validate-pch", "-include-pch")
_DECLARATION = re.compile(r"(?m)^(\s*)threadgroup(\s+\w+ \w+\[[^;]*\];)")
_FLAGS = (
    *("-std=c++17", "-g1", "-march=x86-64-v3", "-ffp-contract=off", "-fno-strict-aliasing"),
    *("-Xclang", "-ffloat16-excess-precision=none"),
    *("-Wno-unknown-attributes", "-Wno-psabi", "-Wno-shift-count-negative"),
    *("-Wno-shift-count-overflow", "-ftrivial-auto-var-init=pattern", "-fPIC", "-I", str(_FOLDER)),
)


class RefusedTextError(Exception):
    """The compiler does not take the kernel's text; the message is its own."""


class Mode(Enum):
    """How a kernel is compiled, by the compiler's options.

    PLAIN is quick, COUNTING tells each load from device memory as the text has
    it, which optimisation would split or join. The others run as programs: APART
    so that a crash or an endless loop is a fault like others, MEMORY and RACES
    under sanitizers.
    """

    PLAIN = ("-O2",)
    APART = ("-O0",)
    COUNTING = ("-O0", "-fsanitize-coverage=trace-loads,edge")
    MEMORY = ("-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    RACES = ("-O1", "-fsanitize=thread")

    @property
    def is_program(self) -> bool:
        """Whether a kernel has a process of its own, as sanitizers want it."""
        return self in (Mode.APART, Mode.MEMORY, Mode.RACES)


@lru_cache
def find_compiler() -> str | None:
    """A clang with 16-bit floats and vectors, where the runtime can switch stacks; or None."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return None
    for name in _COMPILERS:
        if (found := shutil.which(name)) and _version(found) >= _OLDEST:
            return found
    return None


def _version(compiler: str) -> int:
    words = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    match = re.search(r"clang version (\d+)", words.stdout)
    return int(match[1]) if match else 0


def build(source: str, mode: Mode) -> Path:
    """The shared object, or program, of C++ that has a `metal_entry`. Raises RefusedTextError."""
    digest = hashlib.sha256(_runtime_text().encode() + source.encode() + str(mode.value).encode())
    target = _cache() / f"{digest.hexdigest()[:24]}{'' if mode.is_program else '.so'}"
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(dir=_cache()) as folder:
        staged = Path(folder) / "kernel"
        text = Path(folder) / "kernel.cpp"
        text.write_text(source.removeprefix(_PRELUDE))
        how = () if mode.is_program else ("-shared",)
        prelude = (*_AS_BUILT, str(_prelude(mode))) if source.startswith(_PRELUDE) else ()
        words = (*prelude, str(text), str(_runtime(mode)))
        _compile(*mode.value, *how, *words, "-o", str(staged))
        staged.replace(target)
    return target


def translate(generated: Generated) -> str:
    """C++ that ends in `metal_entry`, which runs one thread."""
    text = generated.text.replace("[[kernel]] ", "")
    text = _DECLARATION.sub(r"\1SHARED_VARIABLE\2", text)
    text = re.sub(r" \[\[(?:buffer\(\d+\)|\w+)\]\]", "", text)
    arguments = ", ".join(map(_argument, generated.parameters))
    template = f"<{', '.join(generated.template)}>" if generated.template else ""
    return (
        # Without a name, so that AddressSanitizer sees where each threadgroup variable ends: those
        # of a template with a name may be shared between files, and are not watched.
        f'{_PRELUDE}namespace {{\n#line 1 "{generated.function}.metal"\n{text}}}\n'
        'extern "C" void metal_entry(const MetalThread* self, void** buffers) {\n'
        f"  {generated.function}{template}({arguments});\n}}\n"
    )


def _argument(parameter: Parameter) -> str:
    """What `metal_entry` passes: a thread's attribute, or a buffer as the parameter's type."""
    if parameter.buffer is None:
        return f"self->{parameter.name}"
    by_reference = "*" if parameter.type.endswith("&") else ""
    kind = parameter.type.rstrip("&* ")
    return f"{by_reference}({kind}*)buffers[{parameter.buffer}]"


@lru_cache
def _runtime(mode: Mode) -> Path:
    """The runtime's object file for a mode: never instrumented, whatever the mode."""
    digest = hashlib.sha256(_runtime_text().encode() + str(mode.value).encode()).hexdigest()[:24]
    target = _cache() / f"{digest}.o"
    if not target.exists():
        staged = target.with_suffix(f".{os.getpid()}")
        _compile(
            *("-O2", "-fno-builtin", f"-DTHREAD_SANITIZER={int(mode is Mode.RACES)}"),
            *(f"-DEXECUTABLE={int(mode.is_program)}", "-c", str(_FOLDER / "runtime.cpp")),
            *("-o", str(staged)),
        )
        staged.replace(target)
    return target


@lru_cache
def _prelude(mode: Mode) -> Path:
    """The shim, compiled once for a mode: half of what a kernel takes to compile.

    Of copies, which stay as they are however the working tree changes.
    """
    digest = hashlib.sha256(_runtime_text().encode() + str(mode.value).encode()).hexdigest()[:24]
    folder = _cache() / f"{digest}.shim"
    target = folder / "shim.pch"
    if not target.exists():
        folder.mkdir(exist_ok=True)
        for name in ("shim.h", "runtime.h"):
            shutil.copyfile(_FOLDER / name, folder / name)
        staged = folder / str(os.getpid())
        header = ("-x", "c++-header", str(folder / "shim.h"))
        _compile(*mode.value, *header, "-o", str(staged))
        staged.replace(target)
    return target


@lru_cache
def _runtime_text() -> str:
    files = ("runtime.cpp", "runtime.h", "shim.h", "cuda_shim.h")
    return "".join((_FOLDER / name).read_text() for name in files) + str(_FLAGS)


@lru_cache
def _cache() -> Path:
    folder = Path(tempfile.gettempdir()) / f"ember-metal-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    return folder


def _compile(*words: str) -> None:
    compiler = find_compiler()
    assert compiler, "no clang++: check find_compiler() first"
    done = subprocess.run([compiler, *_FLAGS, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RefusedTextError(f"clang refused the kernel:\n{done.stderr[:4000]}")
