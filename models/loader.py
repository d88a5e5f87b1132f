"""A GGUF file -> network, tokenizer and chat template.

How the network holds the file's matrices is its backend's (`_Backing`): in the mapped file
itself, which lives as long as the network, or in arrays that are read from it.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path

import mlx.core as mx

from kvcache import Backend, EmberError
from kvcache.config import on_gpu
from kvcache.errors import NativeUnavailableError, quoted
from kvcache.native.build import Sources, build
from models.finding import catalogue
from models.finding.source import locate
from models.gguf.file import GGUFFile
from models.gguf.header import TensorInfo
from models.gguf.identity import identity_of
from models.gguf.metadata import Metadata
from models.gguf.open_file import Map, OpenFile
from models.gguf.tensor import Tensor
from models.gguf.tensor_types import TensorType
from models.native.kernels import kernels, kinds_of, missing
from models.network.config import NetworkConfig
from models.network.cpu_llama import CpuModel, hold_in_place
from models.network.cpu_rank import CpuRank
from models.network.gpu_matrices import GpuMatrices
from models.network.layers import HoldMatrix, Projection, hold_decoded
from models.network.llama import Model
from models.network.rank_matrices import Group, Ranks, checked
from models.network.shapes import notes_on, tensors_to_read
from models.network.share import Share
from models.network.weights import Weights
from models.sampling_defaults import SamplingDefaults
from models.text.builtin_templates import given_template
from models.text.chat_template import ChatTemplate
from models.text.tokenizer import Tokenizer
from models.title import quantization, title, titled

# What compiles the kernels that are missing.
Compile = Callable[[Sequence[Sources]], object]
OnProgress = Callable[[int, int], None]
# Dimensions, and bytes of the weights in memory.
Accept = Callable[[NetworkConfig, int], None]


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """All that a GGUF file gives.

    name: for people; quantization: how most weights are stored.
    file_bytes: size of the file; weight_bytes: what its tensors take in memory.
    notes: a sentence for each thing that was assumed where the file does not say, or that runs
    slower than it should.
    sampling: how its makers would have tokens drawn.
    opened, entries: the file, and its tensors there.
    group: the ranks that share the network, of which `config` and `weight_bytes` are this one's
    part; None where it is whole.
    """

    name: str
    quantization: str
    path: Path
    config: NetworkConfig
    model: Model
    tokenizer: Tokenizer
    template: ChatTemplate
    file_bytes: int
    weight_bytes: int
    sampling: SamplingDefaults
    notes: tuple[str, ...]
    opened: OpenFile
    entries: Mapping[str, TensorInfo]
    group: Group | None = None

    @property
    def title(self) -> str:
        """The name, and how the weights are stored: `SmolLM2 135M Instruct · Q4_1`."""
        return titled(self.name, self.quantization)

    @cached_property
    def identity(self) -> str:
        """32 hex digits that tell the file from others, see `identity`; milliseconds, once.

        Raises GGUFError where it is not what it was when it was loaded.
        """
        return identity_of(self.opened, self.entries.values())


def activation_dtype() -> mx.Dtype:
    """float16 on a GPU; float32 on the CPU, whose fp16 products are far slower."""
    return mx.float16 if on_gpu() else mx.float32


def load(
    model: str | Path,
    *,
    backend: Backend | str = Backend.AUTO,
    pretokenizer: str | None = None,
    chat_template: str | Path | None = None,
    progress: OnProgress | None = None,
    accept: Accept | None = None,
    compiles: Compile | None = None,
    group: Group | None = None,
    renders: bool = False,
) -> LoadedModel:
    """Load a model by path or name (`models.finding.source.locate`); downloads nothing.

    backend: what computes the network's products (its cache has its own setting), or its word.
    pretokenizer: llama.cpp's name of one, instead of that which the file names.
    chat_template: a jinja2 file, or the name of a built-in one (`models.text.builtin_templates`),
    to take in place of the file's own.
    progress: called with (bytes of tensors done, bytes of all tensors).
    accept: told what the header says before anything is read; what it raises ends the load.
    compiles: asked to compile the kernels of the file's types where they are not; None does it at
    once, and says so on stderr.
    group: of `mlx.core.distributed.init`: each of its ranks loads its share of every matrix, and
    all that a model computes is asked of all ranks, in the same order.
    renders: the chat template is made ready meanwhile, for who renders by it next.
    Raises ModelNotFoundError, ChatTemplateError, EmberError for a pre-tokenizer that nobody
    knows, GGUFError, which names the file, where it cannot be run, or UnevenError for more ranks
    than can share it.
    """
    path = locate(_named("model", model, or_none=False) or "")
    _named("pretokenizer", pretokenizer)
    template_named, backend = _named("chat_template", chat_template), Backend.of(backend)
    given = None if template_named is None else given_template(template_named)
    group = checked(group)
    with GGUFFile(path) as file:
        config = NetworkConfig.from_metadata(file.metadata)
        entries, ranks = tensors_to_read(file, config), None
        if group is not None:
            share = Share.of(config, entries, rank=group.rank(), size=group.size())
            config, entries = share.config, share.entries(entries)
            ranks = Ranks(share=share, group=group)
        backing = _backing(backend, kinds_of(entries.values()), compiles)
        weight_bytes = sum(map(backing.bytes_of, entries.values()))
        if accept is not None:
            accept(config, weight_bytes)
        tokenizer = Tokenizer.from_metadata(file.metadata, pretokenizer)
        template = ChatTemplate.from_metadata(file.metadata, tokenizer, given)
        if renders:
            template.start()
        if backing.map_by is not None:
            file.opened.map_by(backing.map_by)
        tensors = {name: file.tensor(info) for name, info in entries.items()}
        hold = _reporting(backing.hold, entries, progress) if progress else backing.hold
        weights = Weights(tensors, activation_dtype(), hold, joins=backing.joins, ranks=ranks)
        network = backing.network(config, weights, file.opened.check)
        file.opened.check()
        name = title_of(path, file.metadata)
        stored = quantization(file.metadata, entries.values())
        sampling = SamplingDefaults.from_metadata(file.metadata)
    return LoadedModel(
        name=name,
        quantization=stored,
        path=path,
        config=config,
        model=network,
        tokenizer=tokenizer,
        template=template,
        file_bytes=file.opened.size,
        weight_bytes=weight_bytes,
        sampling=sampling,
        notes=(
            *file.notes,
            *notes_on(file.tensors),
            *tokenizer.notes,
            *sampling.notes,
            *backing.notes,
        ),
        opened=file.opened,
        entries=file.tensors,
        group=group,
    )


def _named(argument: str, value: object, *, or_none: bool = True) -> str | None:
    """A name or a path, as text. Raises EmberError for what is neither."""
    if isinstance(value, str | Path) and str(value):
        return str(value)
    if value is None and or_none:
        return None
    raise EmberError(f"got {argument}={quoted(value)}, expected a name or a path")


@dataclass(frozen=True, kw_only=True)
class _Backing:
    """How a backend holds a network's matrices, and computes with them.

    network: makes one, with what to call, while the file is computed with, to learn whether it
    is what it was. map_by: see `OpenFile`. joins: see `Weights`. as_filed: whether in as many
    bytes as in the file, or as floats. notes: all there are once the network is made.
    """

    hold: HoldMatrix
    network: Callable[[NetworkConfig, Weights, Callable[[], None]], Model]
    map_by: Map | None = None
    joins: bool = True
    as_filed: bool = False
    notes: Sequence[str] = ()

    def bytes_of(self, info: TensorInfo) -> int:
        """That a tensor takes in memory."""
        return info.nbytes if self.as_filed else decoded_bytes(info.shape)


def _backing(
    backend: Backend, kinds: frozenset[TensorType] = frozenset(), compiles: Compile | None = None
) -> _Backing:
    """Of a backend; with what is to be said where AUTO must do without kernels."""
    if kernels_missing := missing(backend, kinds):
        # Side by side; what fails is said where it is loaded.
        with suppress(NativeUnavailableError):
            (compiles or build)(kernels_missing)
    plain, resolved = _Backing(hold=hold_decoded, network=_of_arrays), backend.resolve()
    if resolved is Backend.GPU:
        matrices = GpuMatrices()
        return replace(plain, hold=matrices, as_filed=True, notes=matrices.notes)
    if resolved is not Backend.CPU:
        return plain
    try:
        found = kernels()
        found.take(kinds)
    except NativeUnavailableError as error:
        if backend is Backend.CPU:
            raise
        return replace(plain, notes=(f"the network runs in plain MLX, slowly: {error}",))

    def network(config: NetworkConfig, weights: Weights, check: Callable[[], None]) -> Model:
        if weights.are_shared:
            return CpuRank(config, weights, found, check)
        return CpuModel(config, weights, found, check)

    return _Backing(
        hold=hold_in_place(found),
        network=network,
        map_by=found.map,
        joins=False,
        as_filed=True,
    )


def title_of(path: Path, metadata: Metadata) -> str:
    """The name for people that the catalogue gives a file, else its own."""
    known = catalogue.entry_of_file(path.name)
    return known.title if known is not None else title(metadata, path.stem)


def decoded_bytes(shape: Sequence[int]) -> int:
    """That weights of a shape take where they are decoded, as the reference does."""
    return prod(shape) * activation_dtype().size


def bytes_by(backend: Backend) -> Callable[[TensorInfo], int]:
    """What tells the bytes that a tensor takes in memory, as a backend holds it."""
    return _backing(backend).bytes_of


def _of_arrays(config: NetworkConfig, weights: Weights, _check: Callable[[], None]) -> Model:
    """In plain MLX, whose arrays are its own."""
    return Model(config, weights)


def _reporting(
    hold: HoldMatrix, entries: Mapping[str, TensorInfo], progress: OnProgress
) -> HoldMatrix:
    """The same, told with each matrix."""
    total = sum(info.nbytes for info in entries.values() if len(info.shape) > 1)
    done = 0

    def held(tensors: Sequence[Tensor], bias: mx.array | None, dtype: mx.Dtype) -> Projection:
        nonlocal done
        matrix = hold(tensors, bias, dtype)
        done += sum(tensor.nbytes for tensor in tensors)
        progress(done, total)
        return matrix

    return held
