"""Checks generated Metal text with clang's OpenCL C++ front end, which knows address spaces."""

import re
import subprocess
import tempfile
from pathlib import Path

from tests.metal.build import find_compiler
from tests.metal.generated import Generated

_SHIM = Path(__file__).parent / "opencl_shim.h"
_DISABLED = (
    "__opencl_c_generic_address_space",
    "__opencl_c_pipes",
    "__opencl_c_device_enqueue",
    "cl_khr_fp64",
    "__opencl_c_fp64",
)
_OPTIONS = (
    *("-x", "clcpp", "-cl-std=clc++2021", "-target", "spir64", "-fsyntax-only"),
    *("-Xclang", "-finclude-default-header"),
    *("-Xclang", "-cl-ext=" + ",".join(f"-{name}" for name in _DISABLED)),
    *("-Wconversion", "-Wno-sign-conversion", "-Wno-unknown-attributes"),
    *("-Wno-shift-count-negative", "-Wno-shift-count-overflow"),
)


def lint(generated: Generated) -> list[str]:
    """Errors and warnings, one a line; none is what a kernel should have."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.clcpp"
        file.write_text(_opencl(generated))
        compiler = find_compiler()
        assert compiler, "check find_compiler() first"
        words = [compiler, *_OPTIONS, "-include", str(_SHIM), str(file)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    return [line for line in done.stderr.splitlines() if re.search(r"(error|warning):", line)]


def _opencl(generated: Generated) -> str:
    """The text with its template constants as plain ones: an OpenCL kernel is no template."""
    text = re.sub(r"template <[^<>]*>\n\[\[kernel\]\] void", "__kernel void", generated.text)
    text = text.replace("[[kernel]] void", "__kernel void")
    text = re.sub(r" \[\[(?:buffer\(\d+\)|\w+)\]\]", "", text)
    constants = "".join(
        f"typedef {value} {parameter.split()[1]};\n"
        if parameter.startswith("typename")
        else f"constexpr __constant {parameter} = {value};\n"
        for parameter, value in zip(generated.template_parameters, generated.template, strict=True)
    )
    return f"{constants}#line 1\n{text}"
