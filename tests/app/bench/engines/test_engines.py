import json
from dataclasses import replace
from pathlib import Path

import pytest

from app.bench.engines import process, tuning
from app.bench.engines.case import NO_CACHE, Case, EngineName, MlxLmSetting
from app.bench.engines.llama_cpp_bytes import kv_bytes
from kvcache import EmberError
from tests.app.bench.speed_cases import CASE, peer_case, tiny_case
from tests.tiny_files import write_tiny as write_tiny_network


def test_a_batch_and_no_cache_are_measured(tiny_path: Path) -> None:
    found = process.measure(tiny_case(tiny_path, EngineName.EMBER, NO_CACHE, batch=2))
    assert len(found.token_s) == 4
    assert found.kv_bytes == 2 * 384 * 14


def test_no_cache_gives_the_tokens_that_a_cache_gives(tiny_path: Path) -> None:
    from app.bench.engines.ember_case import Run
    from kvcache import CacheConfig, HotDtype, make_prompt_cache
    from models import load

    model = load(tiny_path).model
    config = CacheConfig(hot_dtype=HotDtype.F32, keys="f16", values="f16")
    seen = []
    for kv in ("f16", NO_CACHE):
        case = tiny_case(tiny_path, EngineName.EMBER, kv, batch=2)
        run = Run(case, model, make_prompt_cache(model, config), step=5)
        run.read(0, 7)
        for _ in range(4):
            run.advance()
        seen.append(run.seen.tolist())
    assert seen[0] == seen[1]
    assert len(seen[0][1]) == 11


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_llama_cpps_bytes_by_hand(architecture: str) -> None:
    metadata = {
        "general.architecture": architecture,
        f"{architecture}.block_count": "30",
        f"{architecture}.embedding_length": "576",
        f"{architecture}.attention.head_count": "9",
        f"{architecture}.attention.head_count_kv": "3",
    }
    # 2 * 30 layers * 3 KV heads * 64 dims * 8.5 bits, of 14 tokens
    assert kv_bytes(metadata, "q8_0", 14) == 2 * 30 * 3 * 64 * 14 * 17 // 16


def test_mlx_lm_computes_the_same_network(tiny_path: Path) -> None:
    import mlx.core as mx

    from app.bench.engines.mlx_lm_case import network, read_weights
    from models import load

    ours, ids = load(tiny_path).model(mx.array([[5, 300, 17, 2]])), mx.array([[5, 300, 17, 2]])
    difference = mx.abs(network(read_weights(str(tiny_path)), mx.float32)(ids) - ours).max()
    assert float(difference) < 2e-2 * float(mx.abs(ours).max())  # codes of MLX's own


def test_mlx_lm_is_not_measured_with_another_network(tmp_path: Path) -> None:
    path = write_tiny_network(tmp_path / "tiny.gguf", "qwen2")
    with pytest.raises(EmberError, match=r"not with qwen2's \(half-split rope\); measure without"):
        process.measure(peer_case(path, EngineName.MLX_LM, "KVCache"))


def test_mlx_lm_is_measured(tiny_path: Path) -> None:
    found = process.measure(peer_case(tiny_path, EngineName.MLX_LM, "KVCache"))
    assert len(found.token_s) == 4
    assert found.kv_bytes in (384 * 14, 768 * 14)


def test_mlx_lms_other_caches_hold_what_they_should() -> None:
    import mlx.core as mx

    from app.bench.engines.mlx_lm_case import _cache, _held_bytes

    tokens = mx.ones((1, 3, 150, 64), mx.float16)
    found = {}
    for kv in ("KVCache", "QuantizedKVCache 4", "RotatingKVCache"):
        case = tiny_case(Path("m"), EngineName.MLX_LM, kv)
        cache = _cache(case, MlxLmSetting(group_size=64))
        cache.update_and_fetch(tokens, tokens)
        one = tokens[:, :, :1]
        cache.update_and_fetch(one, one)
        found[kv] = _held_bytes(cache)
    assert found["KVCache"] == 2 * 3 * 151 * 64 * 2
    # codes, then a scale and a bias of two bytes each for 64
    assert found["QuantizedKVCache 4"] == 2 * 3 * 151 * (32 + 4)
    assert found["RotatingKVCache"] == 2 * 3 * 128 * 64 * 2


def test_a_case_survives_json() -> None:
    for engine, kv in ((EngineName.LLAMA_CPP, "f16"), (EngineName.MLX_LM, "QuantizedKVCache 4")):
        case = replace(CASE, engine=engine, kv=kv)
        for setting in tuning.settings_of(case, on_cpu=False):
            one = replace(case, setting=setting)
            assert Case.from_json(json.loads(json.dumps(one.as_json()))) == one
    assert Case.from_json(CASE.as_json()) == CASE


def test_settings_of_one_case_are_measured_in_one_process(tiny_path: Path) -> None:
    case = tiny_case(tiny_path, EngineName.MLX_LM, "QuantizedKVCache 8")
    settings = [MlxLmSetting(prefill_step_size=3), MlxLmSetting(group_size=32)]
    plain = replace(case, kv="KVCache")
    found = process.measure_each(
        [replace(plain, setting=settings[0]), replace(case, setting=settings[1])]
    )
    assert found[0] is not None
    assert len(found[0].token_s) == 4
    assert found[1] is None  # heads of 16 have no groups of 32
