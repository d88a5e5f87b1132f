"""The decode kernels' own text, executed here, against attention over the decoded tiers."""

import mlx.core as mx
import numpy as np
import pytest

from kvcache.gpu import TierDecoder
from tests.metal.build import find_compiler
from tests.metal.emulator import Emulator
from tests.metal.samples import Case, Sample, make

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="needs clang++ 18 or newer")


def attend(sample: Sample, emulator: Emulator) -> np.ndarray:
    out = TierDecoder(launch=emulator).attend(
        sample.q,
        sample.q_sink,
        sample.tiers,
        lowest=sample.lowest,
        position=sample.position,
        scale=sample.scale,
    )
    return np.array(out.astype(mx.float32), dtype=np.float64)


def test_default_codecs() -> None:
    sample = make(Case())
    np.testing.assert_allclose(attend(sample, Emulator()), sample.expected, atol=2e-3)
