"""How many launches a GPU would make for one layer, counted in MLX's graph where there is none.

Everything runs as on a GPU up to the graph: kernels of ours, and MLX's fast operations, which
on a CPU are several, are stood in for by one node each. Views are free. Not seen here: copies
of what is not contiguous, and of arrays that a write cannot take over.
"""

import io
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import mlx.core as mx

from app.bench.engines import mlx_lm_case
from app.bench.engines.case import Case, EngineName, MlxLmSetting
from kvcache import Backend, CacheConfig, TwoTierKVCache, make_prompt_cache
from kvcache.gpu.kernel import Kernel
from models import load
from models.gguf.tensor_types import TensorType
from models.network import gpu_matrices
from models.network.llama import Model
from tests.gguf_factory import (
    LlamaShape,
    TypeChoice,
    every_matrix,
    sentencepiece_tokenizer,
    write_llama,
)
from tests.tiny_files import write_tiny

_VIEWS = frozenset(
    {
        *("Broadcast", "BroadcastAxes", "ExpandDims", "Flatten", "Reshape", "Slice", "Split"),
        *("Squeeze", "Transpose", "Unflatten", "View"),
    }
)
_TWICE = "DynamicSliceUpdate"  # where it lies is computed by a launch of its own
_TYPES = every_matrix(TensorType.Q8_0)
_HOT, _BLOCK, _WINDOW = 64, 32, 2048


def token(held: int) -> int:
    """Of one layer and one token, after `held` of them."""
    return of_a_layer(held).total()


def rows(count: int, held: int) -> int:
    """Of one layer and one pass of `count` tokens."""
    return _third_layer(lambda layers: _network(tiny_model(layers, _TYPES), held, count)).total()


def of_a_layer(held: int, types: TypeChoice = _TYPES) -> Counter[str]:
    """The same by primitives; what is one node here but not in MLX is "Depends"."""
    return _third_layer(lambda layers: _network(tiny_model(layers, types), held))


def of_a_tiny_layer(name: str, held: int) -> Counter[str]:
    """The same of a tiny file's network."""
    return _third_layer(lambda layers: _network(_tiny(name, layers), held))


def block() -> int:
    """Of one layer's block on its way to the cold ring, beside those of the token that sends it."""
    # One block is encoded, and the hot ring is full: the next token completes another.
    full = CacheConfig().sinks + _HOT + 3 * _BLOCK - 1
    return token(full) - token(full - 1)


def mlx_lm_token(held: int) -> int:
    """Of mlx-lm's network and KVCache."""
    import_module("mlx_lm.models.llama")  # which asks for the device that there is
    return _third_layer(lambda layers: _mlx_lm(layers, held)).total()


def launching(arrays: Sequence[mx.array]) -> Counter[str]:
    """The primitives that compute these, as often as each launches something."""
    with io.StringIO() as drawn:
        mx.export_to_dot(drawn, *arrays)
        names = Counter(re.findall(r'label ="(\w+)", shape=rectangle', drawn.getvalue()))
    names[_TWICE] *= 2
    return Counter({name: count for name, count in names.items() if count and name not in _VIEWS})


def node(outputs: list[mx.array], inputs: Sequence[mx.array]) -> list[mx.array]:
    """The outputs, as one primitive that takes the inputs."""
    mx.eval(outputs)
    return list(mx.depends(outputs, list(inputs)))


def _third_layer(graph: Callable[[int], list[mx.array]]) -> Counter[str]:
    """What it adds."""
    with as_on_a_gpu():
        two, three = (launching(graph(layers)) for layers in (2, 3))
    return three - two


def _network(model: Model, held: int, count: int = 1) -> list[mx.array]:
    """The logits of the last of a few tokens, and all that they write."""
    caches = caches_of(model, held)
    hidden = model.hidden(_evaluated(mx.array([[5] * count])), caches)
    logits = model.logits(hidden[:, -1])
    return [logits, *(array for cache in caches for array in cache.pending())]


def caches_of(model: Model, held: int) -> list[TwoTierKVCache]:
    """With `held` tokens in them."""
    config = CacheConfig(max_tokens=_WINDOW, hot=_HOT, block=_BLOCK, backend=Backend.GPU)
    caches = make_prompt_cache(model, config)
    tokens = mx.zeros((1, model.shape.kv_heads, held, model.shape.head_dim), mx.float16)
    for cache in caches:
        cache.append(tokens, tokens)
        mx.eval(cache.pending())
    return caches


def _mlx_lm(layers: int, held: int) -> list[mx.array]:
    with tempfile.TemporaryDirectory() as folder:
        weights = mlx_lm_case.read_weights(str(_tiny_file(folder, layers, _TYPES)))
    case = Case(
        engine=EngineName.MLX_LM,
        model="",
        kv="KVCache",
        backend="auto",
        threads=0,
        depth=held,
        pp=0,
        tg=1,
    )
    run = mlx_lm_case.Run(case, MlxLmSetting(dtype="float16"), weights)
    mx.eval(run._model.parameters())
    size = (1, weights.config.kv_heads, held, weights.config.head_dim)
    for cache in run.cache:
        cache.update_and_fetch(*(mx.random.normal(size).astype(mx.float16) for _ in "kv"))
        mx.eval(cache.state)
    return [run._model(_evaluated(mx.array([[5]])), run.cache)]


def tiny_model(layers: int, types: TypeChoice) -> Model:
    """A network of so many layers, its weights evaluated."""
    with tempfile.TemporaryDirectory() as folder:
        model = load(_tiny_file(folder, layers, types)).model
    mx.eval(model.parameters())
    return model


def _tiny_file(folder: str, layers: int, types: TypeChoice) -> Path:
    path = Path(folder) / "tiny.gguf"
    shape = LlamaShape(
        layers=layers, width=256, ffn=512, heads=4, kv_heads=2, vocab=611, context=4096
    )
    tokenizer = sentencepiece_tokenizer(shape.vocab)
    write_llama(path, config=shape, types=types, tokenizer_metadata=tokenizer, seed=5)
    return path


def _tiny(name: str, layers: int) -> Model:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.gguf"
        write_tiny(path, name, TensorType.Q8_0, layers=layers)
        model = load(path).model
    mx.eval(model.parameters())
    return model


def _one_node(**call: Any) -> list[mx.array]:
    shapes = zip(call["output_shapes"], call["output_dtypes"], strict=True)
    return node([mx.zeros(shape, dtype) for shape, dtype in shapes], call["inputs"])


def _one_fast_node(x: mx.array, *others: Any, **_named: Any) -> mx.array:
    arrays = [each for each in others if isinstance(each, mx.array)]
    return node([mx.zeros(x.shape, x.dtype)], [x, *arrays])[0]


@contextmanager
def as_on_a_gpu(
    kernel: Callable[..., list[mx.array]] = _one_node,
    fast: Callable[..., mx.array] = _one_fast_node,
) -> Iterator[None]:
    """MLX says that there is one, and what would run there is one node of the graph.

    kernel, fast: what stands in for kernels of ours and for MLX's fast operations.
    """
    gpu = SimpleNamespace(type=mx.DeviceType.gpu)
    with ExitStack() as patches:
        patch = patches.enter_context
        patch(mock.patch.object(mx, "default_device", return_value=gpu))
        patch(mock.patch.object(Kernel, "device_function", property(lambda _: kernel)))
        # Nothing is computed that could be right.
        patch(mock.patch.object(gpu_matrices, "fault", return_value=None))
        for name in ("rms_norm", "rope", "scaled_dot_product_attention"):
            patch(mock.patch.object(mx.fast, name, fast))
        yield


def _evaluated(array: mx.array) -> mx.array:
    mx.eval(array)
    return array
