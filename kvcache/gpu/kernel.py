"""One kernel: its text, and the two ways to have MLX compile and run it.

Knows nothing of attention. The text that a kernel is made of lies in `kernels/`.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import mlx.core as mx

FOLDER = Path(__file__).parent / "kernels"
SHARED_HEADERS = ("packing.h", "codecs.h", "softmax.h", "ring.h", "hadamard.h")
LEAST_SIZE = 8  # numbers; MLX puts smaller inputs into constant memory, another kind of pointer
_COMMENT = re.compile(r"\s*//.*$|^\s+", re.MULTILINE)

Constant = int | bool | mx.Dtype
Size = tuple[int, int, int]


class Dialect(Enum):
    """The language that the shared text is read as, by its header's file name."""

    METAL = "metal.h"
    CUDA = "cuda.h"


@cache
def text_of(name: str, folder: Path = FOLDER) -> str:
    """The file `name` of a folder of kernels, or else of this one."""
    path = folder / name
    return (path if path.exists() else FOLDER / name).read_text(encoding="utf-8")


def bare(text: str) -> str:
    """The text without comments, indentation and empty lines.

    MLX puts a kernel's whole text together at each call, and hashes it.
    """
    return _COMMENT.sub("", text)


def in_device_memory(array: mx.array) -> mx.array:
    """The array, with room after it if it is tiny."""
    if array.size >= LEAST_SIZE:
        return array
    return mx.pad(array.flatten(), (0, LEAST_SIZE - array.size))


@dataclass(frozen=True, kw_only=True, eq=False)
class Kernel:
    """A kernel's text: `source` is the inside of the function, `headers` stand before it.

    macros stand before the headers, after the dialect's own.
    """

    stem: str
    source: str
    headers: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    macros: tuple[tuple[str, str | int], ...] = ()

    @classmethod
    def load(
        cls,
        stem: str,
        *,
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
        headers: tuple[str, ...],
        macros: tuple[tuple[str, str | int], ...] = (),
        folder: Path = FOLDER,
    ) -> "Kernel":
        """The kernel of the file `stem`.metal of a folder, after headers of it or of this one."""
        return cls(
            stem=stem,
            source=text_of(f"{stem}.metal", folder),
            headers="".join(text_of(header, folder) for header in headers),
            inputs=inputs,
            outputs=outputs,
            macros=macros,
        )

    def header(self, dialect: Dialect) -> str:
        """All that stands before the function in one dialect, bare."""
        defines = "".join(f"#define {name} {value}\n" for name, value in self.macros)
        return bare(text_of(dialect.value) + defines + self.headers)

    @property
    def body(self) -> str:
        """The inside of the function, bare."""
        return bare(self.source)

    @cached_property
    def metal_function(self) -> Any:
        """As MLX's Metal function; made without Metal too, but not called."""
        return mx.fast.metal_kernel(**self._arguments(Dialect.METAL))

    @cached_property
    def device_function(self) -> Any:
        """As a function of MLX for this machine's GPU."""
        if mx.metal.is_available():
            return self.metal_function
        return mx.fast.cuda_kernel(**self._arguments(Dialect.CUDA))

    def _arguments(self, dialect: Dialect) -> dict[str, Any]:
        return {
            "name": self.name,
            "input_names": list(self.inputs),
            "output_names": list(self.outputs),
            "source": self.body,
            "header": self.header(dialect),
        }

    @cached_property
    def name(self) -> str:
        """Unique to the text: MLX on CUDA keeps compiled kernels by name alone."""
        text = self.source + "".join(self.header(dialect) for dialect in Dialect)
        return f"ember_{self.stem}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


class Call(NamedTuple):
    """One launch of a kernel. grid counts threads and is a multiple of the threadgroup."""

    kernel: Kernel
    inputs: Sequence[mx.array]
    constants: Mapping[str, Constant]
    grid: Size
    threadgroup: Size
    shapes: Sequence[tuple[int, ...]]
    dtypes: Sequence[mx.Dtype]

    def of(self, *inputs: mx.array) -> "Call":
        """The same of these inputs, before those that it has."""
        return Call(
            self.kernel,
            (*inputs, *self.inputs),
            self.constants,
            self.grid,
            self.threadgroup,
            self.shapes,
            self.dtypes,
        )

    def arguments(self) -> dict[str, Any]:
        """As the functions that MLX makes of kernels take them."""
        return {
            "inputs": self.inputs,
            "template": list(self.constants.items()),
            "grid": self.grid,
            "threadgroup": self.threadgroup,
            "output_shapes": self.shapes,
            "output_dtypes": self.dtypes,
        }


class Launcher(Protocol):
    """Whatever runs a call: the device, or an emulation of it."""

    def __call__(self, call: Call) -> list[mx.array]:
        """The outputs, lazily or not."""
        ...


def launch_on_device(call: Call) -> list[mx.array]:
    """Run a call on MLX's GPU; each kernel is compiled once for each set of constants."""
    outputs: list[mx.array] = call.kernel.device_function(**call.arguments())
    return outputs
