"""`python -m tests.metal.python_cost`: what Python does for each token and layer on a GPU.

All that runs before MLX has the graph of a token; kernels of ours and MLX's fast operations
are stood in for. Counted is what our packages do: the same on every run, so a test can hold it.
The time, which other work on the machine only lengthens, is of all of it, MLX's share of making
the graph too. A GPU that is done with a layer earlier than this waits.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from types import FrameType
from typing import Any, NamedTuple

import mlx.core as mx

import kvcache
import models
from kvcache import TwoTierKVCache, holding, layer_cache
from models.gguf.tensor_types import TensorType
from models.network import rope
from models.network.llama import Model
from tests.gguf_factory import every_matrix
from tests.metal import launches

# Tokens in the cache: some hot ones alone; cold blocks too; a window that has moved. Neither
# the next token nor the one after it completes a block.
HELD = {"hot": 29, "cold": 151, "steady": 2500}
TYPES = every_matrix(TensorType.Q4_K)
_OURS = tuple(str(Path(package.__path__[0])) for package in (kvcache, models))
_LAYERS = 22  # TinyLlama's
_TOKENS = 20  # that one cache is asked for: fewer than complete a block
_CACHES = 12


class PythonCost(NamedTuple):
    """calls: of functions of ours. instructions: of this Python's bytecode, in them."""

    calls: int
    instructions: int


class Counted(NamedTuple):
    """layer: of each. token: of a token whatever the number of layers: what all of them share."""

    layer: PythonCost
    token: PythonCost


def counted(held: int) -> Counted:
    """With `held` tokens in the cache."""
    few, many = 3, 4
    _of_a_token(few, held)  # does what is done once
    (calls, instructions), more = _of_a_token(few, held), _of_a_token(many, held)
    layer = PythonCost(more.calls - calls, more.instructions - instructions)
    shared = calls - few * layer.calls, instructions - few * layer.instructions
    return Counted(layer, PythonCost(*shared))


def seconds(held: int) -> float:
    """Of each of 22 layers, with a 22nd of what they share: the shortest of many tokens."""
    with launching_nothing():
        model = launches.tiny_model(_LAYERS, TYPES)
        shortest = min(
            _seconds(model, caches)
            for caches in (launches.caches_of(model, held) for _ in range(_CACHES))
            for _ in range(_TOKENS)
        )
    return shortest / _LAYERS


def _seconds(model: Model, caches: Sequence[TwoTierKVCache]) -> float:
    start = perf_counter()
    model.hidden(mx.array([[5]]), caches)
    return perf_counter() - start


def _of_a_token(layers: int, held: int) -> PythonCost:
    with launching_nothing():
        model = launches.tiny_model(layers, TYPES)
        caches = launches.caches_of(model, held)
        model.hidden(mx.array([[5]]), caches)  # what the first token alone does
        for shared in (holding.appended, layer_cache._causal_sight, rope._offsets):
            shared.cache_clear()  # what a run before this one left
        return _traced(lambda: model.hidden(mx.array([[5]]), caches))


def _traced(run: Callable[[], Any]) -> PythonCost:
    calls = instructions = 0

    def trace(frame: FrameType, event: str, _value: Any) -> Any:
        nonlocal calls, instructions
        if event == "call":
            if not frame.f_code.co_filename.startswith(_OURS):
                return None
            calls += 1
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        instructions += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(before)
    return PythonCost(calls, instructions)


@contextmanager
def launching_nothing() -> Iterator[None]:
    """As on a GPU whose kernels give zeros, the same arrays each time, and whose others nothing."""
    outputs: dict[Any, list[mx.array]] = {}

    def kernel(**call: Any) -> list[mx.array]:
        key = tuple(call["output_shapes"]), tuple(call["output_dtypes"])
        if key not in outputs:
            outputs[key] = [mx.zeros(shape, dtype) for shape, dtype in zip(*key, strict=True)]
            mx.eval(outputs[key])
        return outputs[key]

    with launches.as_on_a_gpu(kernel, lambda x, *_others, **_named: x):
        yield


def main() -> None:
    """Print a table."""
    print(f"{'':8}{'calls':>8}{'instructions':>14}{'us':>7}  a layer, and beside all layers")
    for state, held in HELD.items():
        layer, token = counted(held)
        print(
            f"{state:8}{layer.calls:8}{layer.instructions:14}{1e6 * seconds(held):7.1f}"
            f"{token.calls:8}{token.instructions:14}"
        )


if __name__ == "__main__":
    main()
