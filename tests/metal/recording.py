"""A launcher that runs nothing: the calls of a case, to look at their text."""

from dataclasses import dataclass, field

import mlx.core as mx

from kvcache.gpu import TierDecoder, TierPrefill
from kvcache.gpu.kernel import Call
from tests.metal.samples import Case, make


@dataclass(frozen=True, kw_only=True)
class Recorder:
    """calls: in the order they were made."""

    calls: list[Call] = field(default_factory=list)

    def __call__(self, call: Call) -> list[mx.array]:
        """Outputs of zeros."""
        self.calls.append(call)
        return zeros(call)


def zeros(call: Call) -> list[mx.array]:
    """A launcher that only allocates the outputs."""
    return [mx.zeros(shape, dtype) for shape, dtype in zip(call.shapes, call.dtypes, strict=True)]


def prefill_calls_of(case: Case) -> list[Call]:
    """Every call of prefill over a case's tiers."""
    recorder = Recorder()
    sample = make(case)
    TierPrefill(launch=recorder).attend(sample.q, sample.held, sample.sight, scale=sample.scale)
    return recorder.calls


def calls_of(case: Case) -> list[Call]:
    """Every call that decoding over a case's tiers makes."""
    recorder = Recorder()
    sample = make(case)
    TierDecoder(launch=recorder, threadgroups=case.threadgroups).attend(
        sample.q, sample.held, sample.sight, scale=sample.scale
    )
    return recorder.calls
