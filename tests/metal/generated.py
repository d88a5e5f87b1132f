"""The complete Metal text that MLX makes of a kernel, on a machine without Metal.

`mx.export_function` writes a graph to a file; in it stands each custom kernel's
name and source, the very text that MLX would hand to Metal's compiler after its
own prelude. This module reads them out, and what the parameters are.
"""

import re
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from kvcache.gpu.kernel import Call

_PARAMETER = re.compile(r"^\s*(?P<type>[^\[]*?)\s*(?P<name>\w+) \[\[(?P<attribute>[^\]]+)\]\]$")
_BUFFER = re.compile(r"buffer\((\d+)\)")


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter of a kernel function. buffer: its index, or None for a thread's attribute."""

    type: str
    name: str
    buffer: int | None


@dataclass(frozen=True, kw_only=True)
class Generated:
    """text: header and kernel function, without the instantiation, which `template` stands for."""

    function: str
    text: str
    template: tuple[str, ...]
    template_parameters: tuple[str, ...]
    parameters: tuple[Parameter, ...]


def generate(call: Call) -> Generated:
    """What MLX generates for a call."""
    function, source = _exported(call)
    text, _, instantiation = source.partition("\ntemplate [[host_name(")
    values = re.search(r"decltype\(\w+<(.*?)>\)", instantiation)
    start = text.index(f"void {function}(")
    names = re.search(r"template <([^<>]*)>\n\[\[kernel\]\]", text)
    signature = text[start : text.index(") {\n", start)].partition("(")[2]
    return Generated(
        function=function,
        text=text + "\n",
        template=tuple(values[1].split(", ")) if values else (),
        template_parameters=tuple(names[1].split(", ")) if names else (),
        parameters=tuple(_parameter(line) for line in signature.split(",\n")),
    )


def _exported(call: Call) -> tuple[str, str]:
    """The kernel function's name and source."""
    arguments = call.arguments()
    inputs = arguments.pop("inputs")
    function = call.kernel.metal_function
    with tempfile.NamedTemporaryFile(suffix=".mlxfn") as file:
        mx.export_function(
            file.name, lambda *arrays: function(inputs=list(arrays), **arguments), *inputs
        )
        written = Path(file.name).read_bytes()
    # Strings lie there as a length of eight bytes and their characters.
    at = written.index(f"custom_kernel_{call.kernel.name}".encode()) - 8
    name, at = _string(written, at)
    source, _ = _string(written, at)
    return name, source


def _string(data: bytes, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", data, at)
    end = at + 8 + length
    return data[at + 8 : end].decode(), end


def _parameter(line: str) -> Parameter:
    match = _PARAMETER.match(line.strip())
    assert match, f"a parameter of an unknown form: {line!r}"
    buffer = _BUFFER.fullmatch(match["attribute"])
    return Parameter(
        type=match["type"], name=match["name"], buffer=int(buffer[1]) if buffer else None
    )
