"""Every case of the emulator's tests, on this GPU, against definitions in float64."""

from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from kvcache.gpu import TierDecoder, TierPrefill
from kvcache.gpu.kernel import Launcher
from tests.metal.cases import BLOCKS, CODECS, SHAPES, TIERS
from tests.metal.check.rows import CorrectnessRow
from tests.metal.samples import Case, make, tolerance
from tests.metal.test_prefill import CASES as PREFILL

# What a case gives and what it should, and the difference that is allowed.
Outcome = tuple[mx.array, npt.NDArray[Any], float]
Check = Callable[[Launcher], Outcome]


def cases() -> dict[str, Check]:
    """By name; what a default configuration reaches comes first, if time should be short."""
    return {
        **_of("tiers", TIERS, _decode),
        **_of("shape", SHAPES, _decode),
        **_of("prefill", PREFILL, _prefill),
        **_of("codec", CODECS, _decode),
        **_of("block", BLOCKS, _decode),
    }


def run(launch: Launcher, checks: dict[str, Check]) -> Iterator[CorrectnessRow]:
    """A row for each."""
    for name, check in checks.items():
        try:
            got, expected, most = check(launch)
            error = float(np.abs(np.array(got.astype(mx.float32)) - expected).max())
        except (RuntimeError, ValueError) as problem:  # MLX's, for what the GPU refuses
            said = str(problem).strip().partition("\n")[0]
            yield CorrectnessRow(case=name, error=None, most=0.0, right=False, problem=said)
            continue
        right = error <= most  # NaN is not
        yield CorrectnessRow(
            case=name, error=error if np.isfinite(error) else None, most=most, right=right
        )


def _of(
    kind: str, found: dict[str, Case], attend: Callable[[Case, Launcher], mx.array]
) -> dict[str, Check]:
    def check(case: Case) -> Check:
        return lambda launch: (attend(case, launch), make(case).expected, tolerance(case))

    return {f"{kind}: {name}": check(case) for name, case in found.items()}


def _decode(case: Case, launch: Launcher) -> mx.array:
    sample = make(case)
    return TierDecoder(launch=launch, threadgroups=case.threadgroups).attend(
        sample.q, sample.q_sink, sample.held, sample.sight, scale=sample.scale
    )


def _prefill(case: Case, launch: Launcher) -> mx.array:
    sample = make(case)
    return TierPrefill(launch=launch).attend(
        sample.q, sample.held, sample.sight, scale=sample.scale
    )
