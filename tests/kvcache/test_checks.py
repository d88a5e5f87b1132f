import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from kvcache import CacheError, HotDtype
from kvcache.checks import check_finite, check_queries, check_tokens


@settings(max_examples=60)
@given(
    values=arrays.arrays(np.float32, (1, 2, 3, 5), elements=st.floats(width=32)),
    dtype=st.sampled_from(HotDtype),
    given=st.sampled_from([mx.float16, mx.bfloat16, mx.float32]),
)
def test_cpu_and_device_refuse_what_the_dtype_does_not_hold(
    values: np.ndarray, dtype: HotDtype, given: mx.Dtype
) -> None:
    tokens = mx.array(values).astype(given)
    largest = float(mx.finfo(dtype.mx).max)
    fits = bool((mx.abs(tokens.astype(mx.float32)) <= largest).all())
    near = bool((mx.abs(tokens.astype(mx.float32)) > largest).any()) and bool(
        mx.isfinite(tokens.astype(dtype.mx)).all()
    )
    fine = mx.zeros_like(tokens)
    for on_cpu in (True, False):
        # What rounds down to the largest number may be taken or refused.
        if fits:
            check_finite(tokens, fine, dtype, on_cpu=on_cpu)
        elif not near:
            with pytest.raises(CacheError, match="NaN, infinite or beyond"):
                check_finite(fine, tokens, dtype, on_cpu=on_cpu)


def test_large_sums_of_small_numbers_pass() -> None:
    tokens = mx.full((1, 4, 2000, 16), 300.0)
    check_finite(tokens, tokens, HotDtype.F16, on_cpu=True)


def test_tokens_of_any_batch_are_taken_before_the_first() -> None:
    k = mx.zeros((5, 2, 3, 16))
    check_tokens(k, k, (None, 2, 16))
    with pytest.raises(CacheError, match=r"the cache holds \[B, Hkv, _, D\] = \[any, 3, _, 16\]"):
        check_tokens(k, k, (None, 3, 16))


def test_queries_need_a_held_token() -> None:
    q = mx.zeros((1, 4, 0, 16))
    with pytest.raises(CacheError, match="got 0 queries over 0 held tokens"):
        check_queries(q, (1, 2, 16), 0)
    check_queries(q, (1, 2, 16), 1)
