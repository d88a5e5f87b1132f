"""Which settings a peer is shown at: each that matters is tried, and the best is measured.

A trial is short, and all trials of one form of cache run in one process, so that
the depth is filled once. It decides for each test by itself: what reads a prompt best may
not generate best.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from app.bench.engines.case import (
    Case,
    EngineName,
    LlamaCppSetting,
    Measurement,
    MlxLmSetting,
    Setting,
)
from app.bench.engines.process import measure_each
from app.bench.environment import physical_cores

# llama.cpp's own default, and others that prompts of the usual lengths are read with.
_UBATCH = 512
_UBATCHES = (128, 256, 2048)
# mlx-lm's default is 2048; a shorter one keeps what a step makes near the cores.
_STEPS = (32, 2048)
_STEP = 512
_GROUP = 64  # of QuantizedKVCache, its default
_GROUPS = (32, 128)

# By test: what each setting gave, in tokens per second, the best one first.
Tried = tuple[dict[Setting, float], ...]
Speeds = Callable[[Case, Measurement], Sequence[float]]


def settings_of(case: Case, *, on_cpu: bool) -> list[Setting]:
    """What a peer is tried with: one setting changed at a time, for each form of its cache."""
    if case.engine is EngineName.LLAMA_CPP:
        return list(_llama_cpp_settings(case))
    return list(_mlx_lm_settings(case, on_cpu=on_cpu))


def _llama_cpp_settings(case: Case) -> Iterator[LlamaCppSetting]:
    most = case.threads or physical_cores()
    threads = {most}
    if not case.threads:
        threads |= {1, max(1, most // 2), os.cpu_count() or most}
    # Without flash attention llama.cpp takes no quantized values.
    f16_values = case.kv.rpartition("/")[2] == "f16"
    for flash in (True, False) if f16_values else (True,):
        base = LlamaCppSetting(flash_attn=flash, n_ubatch=_UBATCH, n_threads=most)
        yield base
        yield from (replace(base, n_threads=n) for n in sorted(threads - {most}))
        # A prompt that one micro-batch holds is read the same by every longer one.
        yield from (
            replace(base, n_ubatch=n) for n in _UBATCHES if min(case.pp, n) != min(case.pp, _UBATCH)
        )


def _mlx_lm_settings(case: Case, *, on_cpu: bool) -> Iterator[MlxLmSetting]:
    group = _GROUP if case.kv.startswith("Quantized") else 0
    # The scales' own on a GPU; on two x86-64 cores MLX's float16 is 60 times slower.
    dtype = "float32" if on_cpu else "float16"
    base = MlxLmSetting(prefill_step_size=_STEP, dtype=dtype, group_size=group)
    yield base
    yield from (
        replace(base, prefill_step_size=n) for n in _STEPS if min(case.pp, n) != min(case.pp, _STEP)
    )
    yield from (replace(base, group_size=n) for n in _GROUPS if group)


def forms(settings: Sequence[Setting]) -> list[list[Setting]]:
    """Those that can share a filled cache together: one process runs each."""
    return [list(alike) for _, alike in groupby(settings, key=_form)]


def _form(setting: Setting) -> object:
    return setting.flash_attn if isinstance(setting, LlamaCppSetting) else None


def try_each(case: Case, settings: Sequence[Setting]) -> dict[Setting, Measurement]:
    """What each setting that runs gives. Raises EmberError where the process fails."""
    cases = [replace(case, setting=setting) for setting in settings]
    return {
        setting: found
        for setting, found in zip(settings, measure_each(cases), strict=True)
        if found is not None
    }


def ranked(case: Case, found: dict[Setting, Measurement], speeds: Speeds) -> Tried:
    """By test, in the order of `speeds`. Empty where no setting runs."""
    each = {setting: speeds(case, one) for setting, one in found.items()}
    tests = range(len(next(iter(each.values()), ())))
    return tuple(
        dict(sorted(((s, told[test]) for s, told in each.items()), key=lambda pair: -pair[1]))
        for test in tests
    )
