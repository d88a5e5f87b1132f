"""Every case of the emulator's tests, on this GPU, against definitions in float64."""

from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from kvcache import CacheConfig
from kvcache.gpu import TierPrefill
from kvcache.gpu.kernel import Launcher
from models.gguf.tensor_types import TensorType
from tests.metal import lookups, products, test_decode, test_encode, test_product, test_rows
from tests.metal.cases import BLOCKS, CODECS, SHAPES, TIERS, TURNS, WINDOWS
from tests.metal.check.rows import CorrectnessRow
from tests.metal.encoding import MOST_TIES, EncodeCase, differing
from tests.metal.lookups import LookupCase
from tests.metal.products import ProductCase
from tests.metal.samples import Case, make, tolerance
from tests.metal.test_prefill import CASES as PREFILL

Array = npt.NDArray[Any]
# What a case gives and what it should; then the difference that is allowed.
Pair = tuple[Array, Array]
Outcome = tuple[Array, Array, float]
Attend = Callable[[Case, Launcher], Pair]
Check = Callable[[Launcher], Outcome]
_OFTEN = (TensorType.Q4_K, TensorType.Q6_K, TensorType.Q8_0)
_ATTENDED = {
    "tiers": TIERS,
    "turn": TURNS,
    "shape": SHAPES,
    "window": WINDOWS,
    "codec": CODECS,
    "block": BLOCKS,
}


def cases() -> dict[str, Check]:
    """By name, those of the default configuration first."""
    found = _cases()
    first = of_default()
    return {name: found[name] for name in sorted(found, key=lambda name: name not in first)}


def of_default() -> set[str]:
    """Names of the cases with the codecs and blocks of a default configuration, and all dtypes.

    Of matrices those of the types that most files have.
    """
    config = CacheConfig()
    default = config.keys, config.values, config.block
    found: dict[str, dict[str, Case] | dict[str, EncodeCase]] = {
        **_ATTENDED,
        "prefill": PREFILL,
        "encode": test_encode.ALL,
    }
    attending = {
        f"{kind}: {name}"
        for kind, of_kind in found.items()
        for name, case in of_kind.items()
        if (case.keys, case.values, case.block) == default
    }
    return attending | {name for name, kind in _kinds().items() if kind in _OFTEN}


def _cases() -> dict[str, Check]:
    checks: dict[str, Check] = {}
    for kind, found in _ATTENDED.items():
        checks |= _of(kind, found, test_decode.attend)
    checks |= _of("prefill", PREFILL, _prefill)
    checks |= {f"encode: {name}": _encoding(case) for name, case in test_encode.ALL.items()}
    checks |= {f"product: {name}": _product(case) for name, case in test_product.CASES.items()}
    return checks | {f"rows: {name}": _rows(case) for name, case in test_rows.CASES.items()}


def _kinds() -> dict[str, TensorType]:
    """The type of each matrix that is checked."""
    found = {f"product: {name}": case.kind for name, case in test_product.CASES.items()}
    return found | {f"rows: {name}": case.kind for name, case in test_rows.CASES.items()}


def run(launch: Launcher, checks: dict[str, Check]) -> Iterator[CorrectnessRow]:
    """A row for each."""
    for name, check in checks.items():
        try:
            got, expected, most = check(launch)
            error = float(np.abs(got - expected).max())
        except (RuntimeError, ValueError) as problem:  # MLX's, for what the GPU refuses
            said = str(problem).strip().partition("\n")[0]
            yield CorrectnessRow(case=name, error=None, most=0.0, right=False, problem=said)
            continue
        right = error <= most  # NaN is not
        yield CorrectnessRow(
            case=name, error=error if np.isfinite(error) else None, most=most, right=right
        )


def _of(kind: str, found: dict[str, Case], attend: Attend) -> dict[str, Check]:
    def check(case: Case) -> Check:
        return lambda launch: (*attend(case, launch), tolerance(case))

    return {f"{kind}: {name}": check(case) for name, case in found.items()}


def _prefill(case: Case, launch: Launcher) -> Pair:
    sample = make(case)
    out = TierPrefill(launch=launch).attend(sample.q, sample.held, sample.sight, scale=sample.scale)
    return np.array(out.astype(mx.float32)), sample.expected


def _encoding(case: EncodeCase) -> Check:
    """Shares of codes and of scales that are not those of MLX's operations: ties, on a GPU."""
    return lambda launch: (np.array(differing(case, launch)), np.zeros(2), MOST_TIES)


def _product(case: ProductCase) -> Check:
    """Errors in units of what is allowed."""
    return lambda launch: (products.excess(case, launch), np.zeros(1), 1.0)


def _rows(case: LookupCase) -> Check:
    return lambda launch: (lookups.excess(case, launch), np.zeros(1), 1.0)
