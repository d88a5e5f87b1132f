"""Runs kernel calls on this processor, as a `Launcher`: same text, same arguments, no GPU."""

import ctypes
import os
import subprocess
import tempfile
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from kvcache.gpu.kernel import Call, Dialect
from tests.metal.build import Mode, build, translate
from tests.metal.cuda import cuda_on_cpu
from tests.metal.generated import generate
from tests.patience import patience

_ENVIRONMENT = {
    "ASAN_OPTIONS": "detect_stack_use_after_return=0:detect_leaks=0",
    "TSAN_OPTIONS": "halt_on_error=1:history_size=7:report_signal_unsafe=0",
}


class KernelFaultError(Exception):
    """The kernel did what a GPU would not survive or not define; the message says what."""


class Order(IntEnum):
    """The order in which threads and threadgroups run."""

    FORWARD = 0
    BACKWARD = 1
    RANDOM = 2


@dataclass(frozen=True, kw_only=True)
class Emulator:
    """A launcher. loads, lines: filled in COUNTING mode, by kernel's stem and input name.

    seconds: after which a program is taken to have no end; more on a busy machine.
    loads: bytes that threads loaded. lines: of 128 bytes, as often as a load of a
    simdgroup touched them.
    """

    mode: Mode = Mode.PLAIN
    dialect: Dialect = Dialect.METAL
    order: Order = Order.FORWARD
    seed: int = 1
    seconds: float = 20
    loads: dict[tuple[str, str], int] = field(default_factory=dict)
    lines: dict[tuple[str, str], int] = field(default_factory=dict)

    def __call__(self, call: Call) -> list[mx.array]:
        """Run a call. Raises KernelFaultError."""
        inputs = [_to_numpy(array) for array in call.inputs]
        # Outputs start as NaN: what is not written shows.
        outputs = [
            np.full(shape, 0xFF, np.uint8)
            for shape in (
                (int(np.prod(shape)) * dtype.size,)
                for shape, dtype in zip(call.shapes, call.dtypes, strict=True)
            )
        ]
        buffers = [*inputs, *outputs]
        library = build(_text(call, self.dialect), self.mode)
        if self.mode.is_program:
            self._run_program(library, call, buffers)
        else:
            self._run_inside(library, call, buffers)
        return [
            _to_mlx(data, shape, dtype)
            for data, shape, dtype in zip(
                buffers[len(inputs) :], call.shapes, call.dtypes, strict=True
            )
        ]

    def _run_inside(self, path: Path, call: Call, buffers: list[npt.NDArray[Any]]) -> None:
        library = ctypes.CDLL(str(path))
        addresses = (ctypes.c_void_p * len(buffers))(*[b.ctypes.data for b in buffers])
        sizes = (ctypes.c_uint64 * len(buffers))(*[b.nbytes for b in buffers])
        library.metal_count(addresses, sizes, len(buffers))
        message = ctypes.create_string_buffer(512)
        failed = library.metal_launch(
            library.metal_entry,
            *(addresses, (ctypes.c_int * 3)(*call.grid), (ctypes.c_int * 3)(*call.threadgroup)),
            *(int(self.order), ctypes.c_uint64(self.seed), message, len(message)),
        )
        if failed:
            raise KernelFaultError(message.value.decode())
        if self.mode is Mode.COUNTING:
            counted = (ctypes.c_uint64 * len(buffers))()
            counts = (self.loads, library.metal_counted), (self.lines, library.metal_counted_lines)
            for kept, read in counts:
                read(counted)
                for name, count in zip(call.kernel.inputs, counted, strict=False):
                    key = call.kernel.stem, name
                    kept[key] = kept.get(key, 0) + count

    def _run_program(self, path: Path, call: Call, buffers: list[npt.NDArray[Any]]) -> None:
        limit = patience(self.seconds)
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / str(i) for i in range(len(buffers))]
            for file, buffer in zip(files, buffers, strict=True):
                buffer.tofile(file)
            numbers = map(str, (*call.grid, *call.threadgroup, int(self.order), self.seed))
            try:
                done = subprocess.run(
                    [str(path), *numbers, *map(str, files)],
                    capture_output=True,
                    text=True,
                    check=False,
                    timeout=limit,
                    env=os.environ | _ENVIRONMENT,
                )
            except subprocess.TimeoutExpired as error:
                raise KernelFaultError(f"no end after {limit:.0f} seconds") from error
            if done.returncode:
                raise KernelFaultError(done.stderr[:4000] or f"exit code {done.returncode}")
            for file, buffer in zip(files, buffers, strict=True):
                if file.stat().st_size != buffer.nbytes:
                    raise KernelFaultError("it wrote where its outputs are kept")
                buffer[...] = np.fromfile(file, buffer.dtype).reshape(buffer.shape)


def _text(call: Call, dialect: Dialect) -> str:
    return translate(generate(call)) if dialect is Dialect.METAL else cuda_on_cpu(call)


def _to_numpy(array: mx.array) -> npt.NDArray[Any]:
    """The array's bytes, a copy that is contiguous and aligned as MLX's buffers are."""
    plain = mx.contiguous(array)
    return np.array(plain.view(mx.uint16) if array.dtype == mx.bfloat16 else plain)


def _to_mlx(data: npt.NDArray[Any], shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    return mx.array(data).view(dtype).reshape(shape)
