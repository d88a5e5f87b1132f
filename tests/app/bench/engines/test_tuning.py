import os
from dataclasses import replace

import pytest

from app.bench.engines import tuning
from app.bench.engines.case import EngineName, LlamaCppSetting
from app.bench.environment import physical_cores
from tests.app.bench.speed_cases import CASE, measurement


def test_llama_cpp_gets_one_core_to_all() -> None:
    case = replace(CASE, engine=EngineName.LLAMA_CPP, kv="f16", threads=0)
    found = tuning.settings_of(case, on_cpu=True)
    threads = {each.n_threads for each in found if isinstance(each, LlamaCppSetting)}
    assert threads >= {1, physical_cores(), os.cpu_count()}
    assert found[0] == LlamaCppSetting(flash_attn=True, n_threads=physical_cores())


def test_a_setting_that_cannot_run_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    case = replace(CASE, engine=EngineName.LLAMA_CPP, kv="f16")
    settings = tuning.settings_of(case, on_cpu=True)
    fast, slow = measurement(1.0, 0.1), measurement(2.0, 0.1)
    given = [None, slow, fast, *[None] * (len(settings) - 3)]
    monkeypatch.setattr(tuning, "measure_each", lambda cases: given)
    found = tuning.try_each(case, settings)
    tried = tuning.ranked(case, found, lambda case, one: [1 / one.pp_s])
    assert tried == ({settings[2]: 1.0, settings[1]: 0.5},)
    assert tuning.ranked(case, {}, lambda case, one: [1.0]) == ()


@pytest.mark.parametrize(
    ("pp", "ubatches"), [(16, {512}), (129, {128, 512}), (512, {128, 256, 512}), (4096, None)]
)
def test_micro_batches_that_change_nothing_are_not_tried(
    pp: int, ubatches: set[int] | None
) -> None:
    case = replace(CASE, engine=EngineName.LLAMA_CPP, kv="q8_0", pp=pp)
    found = {
        setting.n_ubatch
        for setting in tuning.settings_of(case, on_cpu=True)
        if isinstance(setting, LlamaCppSetting)
    }
    assert found == (ubatches or {128, 256, 512, 2048})


def test_threads_that_a_user_asks_for_are_the_peers_too() -> None:
    case = replace(CASE, engine=EngineName.LLAMA_CPP, kv="f16", threads=3)
    for setting in tuning.settings_of(case, on_cpu=True):
        assert isinstance(setting, LlamaCppSetting)
        assert setting.n_threads == 3
