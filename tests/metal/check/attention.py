"""One layer's attention: each launch by itself, then all of them, varied one way at a time."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import sqrt

import mlx.core as mx

from kvcache.gpu import TierDecoder
from kvcache.gpu.kernel import Call, Launcher
from tests.metal.check.held import Layer
from tests.metal.check.rows import AttentionRow, KernelRow
from tests.metal.check.sizes import Shape, Sizes


@dataclass(frozen=True, kw_only=True)
class _Recording:
    """A launcher that keeps what it launched."""

    launch: Launcher
    calls: list[Call] = field(default_factory=list)

    def __call__(self, call: Call) -> list[mx.array]:
        self.calls.append(call)
        return self.launch(call)


def run_kernels(launch: Launcher, sizes: Sizes, gb_s: float) -> Iterator[KernelRow]:
    """A row for each launch of a single token's attention. gb_s: measured."""
    for shape in sizes.shapes:
        for tokens in sizes.kernel_tokens:
            recording = _Recording(launch=launch)
            layer = Layer(shape, tokens)
            attend = layer.attending(TierDecoder(launch=recording))
            mx.eval(attend(layer.queries()))
            for call in recording.calls:
                mx.eval(call.inputs)
                seconds, moved = sizes.timer.kernel(launch, call), _bytes(call)
                yield KernelRow(
                    shape=shape.name,
                    tokens=tokens,
                    kernel=call.kernel.stem,
                    seconds=seconds,
                    bytes=moved,
                    gb_s=_gb_s(moved, seconds),
                    share=_gb_s(moved, seconds) / gb_s,
                )


def run_whole(launch: Launcher, sizes: Sizes, gb_s: float) -> Iterator[AttentionRow]:
    """Every number of tokens, then numbers of new ones over few, and of threadgroups over many."""
    varied = [
        *((tokens, 1, 0) for tokens in sizes.tokens),
        *((sizes.tokens[0], new, 0) for new in sizes.new),
        *((sizes.tokens[-1], 1, count) for count in sizes.threadgroups),
    ]
    for shape in sizes.shapes:
        for tokens, new, threadgroups in varied:
            layer, own = Layer(shape, tokens), TierDecoder(launch=launch)
            decoder = replace(own, threadgroups=threadgroups) if threadgroups else own
            seconds = _seconds(sizes, layer, decoder, new)
            fused = _fused_seconds(sizes, shape, tokens, new)
            yield AttentionRow(
                shape=shape.name,
                tokens=tokens,
                new=new,
                threadgroups=threadgroups,
                seconds=seconds,
                f16_seconds=fused,
                times=fused / seconds,
                cache_bytes=layer.cache_bytes,
                share=_gb_s(layer.cache_bytes, seconds) / gb_s,
            )


def _seconds(sizes: Sizes, layer: Layer, decoder: TierDecoder, new: int) -> float:
    """What came out is asked next."""
    return sizes.timer.chained(layer.attending(decoder, new), layer.queries(new))


def _fused_seconds(sizes: Sizes, shape: Shape, tokens: int, new: int) -> float:
    keys, values = (
        mx.random.normal((1, shape.kv_heads, tokens, shape.dim)).astype(mx.float16) for _ in "kv"
    )
    mx.eval(keys, values)
    scale, mask = 1 / sqrt(shape.dim), "causal" if new > 1 else None

    def attend(q: mx.array) -> mx.array:
        return mx.fast.scaled_dot_product_attention(q, keys, values, scale=scale, mask=mask)

    return sizes.timer.chained(attend, Layer(shape, tokens).queries(new))


def _bytes(call: Call) -> int:
    """Of all inputs, each once however often it is passed, and of the outputs."""
    inputs = {id(array): array.nbytes for array in call.inputs}
    outputs = zip(call.shapes, call.dtypes, strict=True)
    return sum(inputs.values()) + sum(mx.zeros(s, d).nbytes for s, d in outputs)


def _gb_s(moved: int, seconds: float) -> float:
    """0 for what is too short to be told from the link between two launches."""
    return moved / seconds / 1e9 if seconds else 0.0
