"""A GGUF file -> network, tokenizer and chat template in memory.

Tensors are repacked one by one, largest first, and each one's pages are let go
after it, so that the peak stays near the sum of what is kept.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from kvcache import Backend
from kvcache.config import on_gpu
from kvcache.native.build import NativeUnavailableError
from models.finding.source import locate
from models.gguf.file import GGUFFile
from models.gguf.header import TensorInfo
from models.gguf.repack import Quantized, Unquantized, repack, stored_bytes
from models.native.kernels import kernels
from models.network.config import NetworkConfig
from models.network.cpu_llama import CpuModel
from models.network.llama import Model
from models.network.shapes import notes_on, tensors_to_read
from models.network.weights import Weights
from models.text.builtin_templates import given_template
from models.text.chat_template import ChatTemplate
from models.text.tokenizer import Tokenizer

OnProgress = Callable[[int, int], None]
# Dimensions, and bytes of the weights in memory.
Accept = Callable[[NetworkConfig, int], None]


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """All that a GGUF file gives.

    file_bytes: size of the file; weight_bytes: what its tensors take in memory.
    notes: a sentence for each thing that was assumed where the file does not say, or that runs
    slower than it should.
    """

    name: str
    path: Path
    config: NetworkConfig
    model: Model
    tokenizer: Tokenizer
    template: ChatTemplate
    file_bytes: int
    weight_bytes: int
    notes: tuple[str, ...]


def activation_dtype() -> mx.Dtype:
    """float16 on a GPU; float32 on the CPU, whose fp16 products are far slower."""
    return mx.float16 if on_gpu() else mx.float32


def load(
    model: str | Path,
    *,
    backend: Backend = Backend.AUTO,
    pretokenizer: str | None = None,
    chat_template: str | None = None,
    progress: OnProgress | None = None,
    accept: Accept | None = None,
) -> LoadedModel:
    """Load a model by path or name (`models.finding.source.locate`); downloads nothing.

    backend: what computes the network's products (its cache has its own setting).
    pretokenizer: llama.cpp's name of one, instead of that which the file names.
    chat_template: a jinja2 file, or the name of a built-in one (`models.text.builtin_templates`),
    to take in place of the file's own.
    progress: called with (bytes of tensors done, bytes of all tensors).
    accept: told what the header says before anything is read; what it raises ends the load.
    Raises ModelNotFoundError, ChatTemplateError, EmberError for a pre-tokenizer that nobody
    knows, or GGUFError, which names the file, where it cannot be run.
    """
    path = locate(str(model))
    given = given_template(chat_template) if chat_template is not None else None
    with GGUFFile(path) as file:
        config = NetworkConfig.from_metadata(file.metadata)
        entries = tensors_to_read(file, config)
        if accept is not None:
            accept(config, sum(map(stored_bytes, entries.values())))
        tokenizer = Tokenizer.from_metadata(file.metadata, pretokenizer)
        template = ChatTemplate.from_metadata(file.metadata, tokenizer, given)
        weights = Weights(_read_tensors(file, entries, progress or _ignore), activation_dtype())
        name = file.metadata.get_string("general.name", path.stem)
        network, without = _network(config, weights, backend)
    return LoadedModel(
        name=name,
        path=path,
        config=config,
        model=network,
        tokenizer=tokenizer,
        template=template,
        file_bytes=path.stat().st_size,
        weight_bytes=weights.nbytes,
        notes=file.notes + notes_on(file.tensors) + tokenizer.notes + without,
    )


def _network(
    config: NetworkConfig, weights: Weights, backend: Backend
) -> tuple[Model, tuple[str, ...]]:
    """The network of a backend, and what is to be said where AUTO must do without kernels."""
    if backend.resolve() is not Backend.CPU:
        return Model(config, weights), ()
    try:
        return CpuModel(config, weights, kernels()), ()
    except NativeUnavailableError as error:
        if backend is Backend.CPU:
            raise
        return Model(config, weights), (f"the network runs in plain MLX, slowly: {error}",)


def _read_tensors(
    file: GGUFFile, entries: Mapping[str, TensorInfo], progress: OnProgress
) -> dict[str, Quantized | Unquantized]:
    total = sum(info.nbytes for info in entries.values())
    done = 0
    tensors: dict[str, Quantized | Unquantized] = {}
    for info in sorted(entries.values(), key=lambda info: -info.nbytes):
        tensors[info.name] = repack(info, file.tensor(info).data)
        file.release(info)
        done += info.nbytes
        progress(done, total)
    return tensors


def _ignore(_done: int, _total: int) -> None:
    """Progress nobody asked for."""
